"""Accuracy of a checkpoint on a labelled image set, from the logits that it gave."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often pictures of one class were taken for another."""

    truth: str
    prediction: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found; accuracies are shares from 0 to 1."""

    images: int
    top1: float
    top5: float
    per_class: dict[str, float]
    """Top-1 accuracy of each class that has pictures, in class order."""
    confusions: list[Confusion]
    """All that happened, the most frequent first."""


def evaluate(logits: NDArray[np.float32], targets: Sequence[int], labels: Sequence[str]) -> Report:
    """Compare what was predicted with what is true.

    Args:
        logits: (N, K), or any scores with the same ranking.
        targets: N class indices.
        labels: K, in class order.

    Raises:
        ValueError: no pictures, or counts that do not fit each other.
    """
    truth = np.asarray(targets)
    if len(truth) == 0 or logits.shape != (len(truth), len(labels)):
        raise ValueError(f"{logits.shape} scores do not fit {len(truth)} pictures of {len(labels)} classes")
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]  # (N, 5)
    first = ranked[:, 0]
    wrong = Counter((labels[t], labels[p]) for t, p in zip(truth, first, strict=True) if t != p)
    return Report(
        images=len(truth),
        top1=float((first == truth).mean()),
        top5=float((ranked == truth[:, None]).any(axis=1).mean()),
        per_class={labels[k]: float((first[truth == k] == k).mean()) for k in range(len(labels)) if (truth == k).any()},
        confusions=[Confusion(t, p, count) for (t, p), count in wrong.most_common()],
    )

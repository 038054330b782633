"""Accuracy on a labelled image set, from a model's logits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Confusion:
    """Number of images of one class that were classified as another."""

    truth: str
    prediction: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """Result of an evaluation; accuracies are from 0 to 1."""

    images: int
    top1: float
    top5: float
    per_class: dict[str, float]
    """Top-1 accuracy of each class that has images, in class order."""
    confusions: list[Confusion]
    """All confusions, the most frequent first."""


def evaluate(logits: NDArray[np.float32], targets: Sequence[int], labels: Sequence[str]) -> Report:
    """Compare predictions with targets.

    Args:
        logits: (N, K), or any scores with the same ranking.
        targets: N class indices.
        labels: K, in class order.

    Raises:
        ValueError: there are no images, or shapes do not match.
    """
    truth = np.asarray(targets)
    if len(truth) == 0 or logits.shape != (len(truth), len(labels)):
        raise ValueError(f"{logits.shape} scores do not match {len(truth)} images of {len(labels)} classes")
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

"""Ranking of classes."""

import numpy as np
import pytest

from app.serving.results import Classification, Timings


def ranked(logits: list[float], k: int) -> list[int]:
    labels = tuple(map(str, range(len(logits))))
    found = Classification(labels, np.array(logits, np.float32), None, Timings(0, 0, 0, 0))
    return found.ranked(k).tolist()


@pytest.mark.parametrize("k", [1, 2, 3, 7, 99, 100, 101, 10**9])
@pytest.mark.parametrize("distinct", [2, 5, 1000])
def test_ranked_as_a_stable_sort_of_all_classes(k: int, distinct: int) -> None:
    logits = np.random.default_rng(k).integers(-distinct, distinct, 100).astype(float).tolist()
    assert ranked(logits, k) == sorted(range(100), key=lambda index: -logits[index])[:k]


def test_ties_go_to_the_lower_class_index() -> None:
    assert ranked([1.0, 3.0, 3.0, 3.0, 0.0], 2) == [1, 2]
    assert ranked([0.0] * 5, 3) == [0, 1, 2]

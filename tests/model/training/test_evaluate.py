import numpy as np
import pytest

from model.training.evaluate import Confusion, evaluate

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")


def test_accuracies_and_confusions() -> None:
    probabilities = np.zeros((5, 6), np.float32)
    for row, ranking in enumerate([[0, 1], [1, 0], [1, 2], [1, 2], [3, 4]]):
        probabilities[row, ranking] = [0.9, 0.1]
    probabilities[4] = [0.3, 0.2, 0.2, 0.1, 0.1, 0.05]  # the fox is last

    report = evaluate(probabilities, [0, 1, 2, 2, 5], LABELS)

    assert (report.images, report.top1, report.top5) == (5, 2 / 5, 4 / 5)
    assert report.per_class == {"ant": 1.0, "bee": 1.0, "cat": 0.0, "fox": 0.0}
    assert report.confusions == [Confusion("cat", "bee", 2), Confusion("fox", "ant", 1)]


def test_mismatched_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="do not match"):
        evaluate(np.zeros((2, 6), np.float32), [0], LABELS)
    with pytest.raises(ValueError, match="0 images"):
        evaluate(np.zeros((0, 6), np.float32), [], LABELS)

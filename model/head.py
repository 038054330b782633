"""Meaning of a head's outputs: which function makes probabilities of logits, by the rule of transformers' image-classification
pipeline (transformers, pipelines/image_classification.py)."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

HeadActivation = Literal["softmax", "sigmoid", "none"]
"""`softmax`: one of the classes is there. `sigmoid`: each of them is there or not. `none`: outputs are measured values."""

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def head_activation(problem_type: Any, num_classes: int) -> HeadActivation:
    """Return what transformers' pipeline applies to logits by default.

    It asks `function_to_apply` of a configuration only where a model has no classes, so that nothing here depends on it.

    Args:
        problem_type: of a Hugging Face configuration; None where there is none, as in all of timm's and torchvision's.
        num_classes: outputs of the head.

    Raises:
        ValueError: the problem type is not known, or cannot be that of a single class, as transformers refuses it, too.
    """
    if problem_type is not None and problem_type not in _PROBLEM_TYPES:
        known = ", ".join(_PROBLEM_TYPES)
        raise ValueError(f"problem_type {problem_type!r} is not supported; supported are {known}; or set VIT_ACTIVATION")
    if problem_type == "single_label_classification" and num_classes == 1:
        way_out = "set VIT_ACTIVATION to sigmoid, or to none for a measured value"
        raise ValueError(f"problem_type 'single_label_classification' takes two classes or more, and there is one; {way_out}")
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or num_classes == 1 else "softmax"


def probabilities(logits: NDArray[np.float32], activation: HeadActivation) -> NDArray[np.float32] | None:
    """Make probabilities of logits, in float32: (B, K) -> (B, K); None where the outputs are no classes."""
    match activation:
        case "softmax":
            return softmax(logits)
        case "sigmoid":
            return sigmoid(logits)
        case "none":
            return None


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make probabilities over all classes, in float32: (B, K) -> (B, K), each row's sum 1."""
    with np.errstate(invalid="ignore"):  # logits that are not finite: whoever reads them looks for that
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make a probability of each logit by itself, in float32: (B, K) -> (B, K)."""
    exponentials = np.exp(-np.abs(logits))  # at most 1, so that nothing overflows
    shares: NDArray[np.float32] = np.where(logits >= 0, 1, exponentials) / (1 + exponentials)
    return shares

"""Activation of the head: the function from logits to probabilities, chosen as transformers' image-classification pipeline does
(transformers, pipelines/image_classification.py)."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

HeadActivation = Literal["softmax", "sigmoid", "none"]
"""`softmax`: exactly one class applies. `sigmoid`: each class applies or not. `none`: outputs are regression values."""

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def head_activation(problem_type: Any, num_classes: int) -> HeadActivation:
    """Return the function that transformers' pipeline applies to logits by default.

    The pipeline reads a configuration's `function_to_apply` only for models without classes, so it is ignored here.

    Args:
        problem_type: value in a Hugging Face configuration; None if absent, as always with timm and torchvision.
        num_classes: outputs of the head.

    Raises:
        ValueError: the problem type is unknown, or impossible for a single class, which transformers refuses too.
    """
    if problem_type is not None and problem_type not in _PROBLEM_TYPES:
        known = ", ".join(_PROBLEM_TYPES)
        raise ValueError(f"problem_type {problem_type!r} is not supported; supported are {known}; or choose an activation")
    if problem_type == "single_label_classification" and num_classes == 1:
        remedy = "choose the activation sigmoid, or none for a regression"
        raise ValueError(f"problem_type 'single_label_classification' needs at least two classes, and there is one; {remedy}")
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or num_classes == 1 else "softmax"


def probabilities(logits: NDArray[np.float32], activation: HeadActivation) -> NDArray[np.float32] | None:
    """Apply the activation, in float32: logits (B, K) -> probabilities (B, K), or None for a regression."""
    match activation:
        case "softmax":
            return softmax(logits)
        case "sigmoid":
            return sigmoid(logits)
        case "none":
            return None


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise over all classes, in float32: (B, K) -> (B, K), each row with sum 1."""
    with np.errstate(invalid="ignore"):  # non-finite logits are reported later
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map each logit by itself, in float32: (B, K) -> (B, K)."""
    exponentials = np.exp(-np.abs(logits))  # at most 1, so no overflow
    shares: NDArray[np.float32] = np.where(logits >= 0, 1, exponentials) / (1 + exponentials)
    return shares

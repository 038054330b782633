"""Results of classification, and the description of the model. pydantic reads both for OpenAPI."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.head import HeadActivation

Activation = Annotated[
    HeadActivation,
    Field(description="Function that turns logits into probabilities; `none` for measured values, which have none."),
]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one image spent in each step."""

    decode_wait_s: float
    """Waiting for a decoding worker; 0 for an image that arrived as pixels."""
    decode_s: float
    queue_s: float
    inference_s: float


def longest(timings: Sequence[Timings]) -> Timings | None:
    """Return the longest time in each step, for images that were processed concurrently."""
    if not timings:
        return None
    return Timings(
        decode_wait_s=max(timing.decode_wait_s for timing in timings),
        decode_s=max(timing.decode_s for timing in timings),
        queue_s=max(timing.queue_s for timing in timings),
        inference_s=max(timing.inference_s for timing in timings),
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class with its scores."""

    label: str
    class_index: int
    probability: Annotated[float | None, Field(description="null if `activation` is `none`.")]
    logit: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Scores of one image."""

    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    """(K,) in class order."""
    probabilities: NDArray[np.float32] | None
    """(K,) by the model's activation; None if the outputs are not classes."""
    timings: Timings

    def top(self, k: int) -> list[Prediction]:
        """Return the `k` classes with the largest logits, best first; ties go to the lower class index."""
        return self.predictions(self.ranked(k))

    def ranked(self, k: int) -> NDArray[np.intp]:
        """Return the indices of the classes of `top`, in its order."""
        if k >= len(self.logits):
            return (-self.logits).argsort(kind="stable")
        parted = self.logits.copy()
        parted.partition(-k)
        candidates: NDArray[np.intp]
        (candidates,) = (self.logits >= parted[-k]).nonzero()  # more than k where classes tie
        return candidates[(-self.logits[candidates]).argsort(kind="stable")[:k]]

    def predictions(self, classes: NDArray[np.intp]) -> list[Prediction]:
        """Return a prediction for each class index."""
        probabilities = [None] * len(classes) if self.probabilities is None else self.probabilities[classes].tolist()
        rows = zip(classes.tolist(), probabilities, self.logits[classes].tolist(), strict=True)
        return [Prediction(self.labels[index], index, probability, logit) for index, probability, logit in rows]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of one image."""

    vector: NDArray[np.float32]
    timings: Timings


def scaled(vector: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
    """Return a vector as it is, or with length 1; one of zeros stays as it is."""
    length = float(np.linalg.norm(vector)) if normalize else 1.0
    return vector if length in (0.0, 1.0) else vector / np.float32(length)


@dataclass(frozen=True, slots=True)
class Features:
    """One kind of features that the model gives."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Name, labels, sizes, preprocessing and device of the model."""

    name: str
    architecture: str
    labels: Annotated[tuple[str, ...], Field(description="Labels in class order; empty for an encoder without a classifier.")]
    labels_source: Annotated[
        str,
        Field(
            description="`config.json`, `labels.txt`, the published list of the data set and where it was named, or "
            "`none`: then classes have numbers."
        ),
    ]
    activation: Activation
    image_size: Annotated[int, Field(description="Side of the model's square input, in pixels.")]
    patch_size: Annotated[int | None, Field(description="Side of a patch, in pixels; null if a library runs the model.")]
    parameters: int
    served_by: Annotated[
        str, Field(description="`vit-serve`, or the library that runs the model with its version: `transformers 5.23.0`.")
    ]
    output_size: Annotated[int, Field(description="Numbers that the model gives for an image: logits, or features.")]
    features: Annotated[
        tuple[Features, ...],
        Field(description="Features that `POST /embed` gives by `pooling`, the usual one first; empty if it gives none."),
    ]
    explanations: Annotated[
        tuple[str, ...],
        Field(description="Methods of `POST /explain`, the usual one first; empty if the model is not explained."),
    ]
    engine: Annotated[str, Field(description="`torch` or `openvino`.")]
    device: str
    dtype: Annotated[str, Field(description="`float32`, `bfloat16`, `float16` or `int8`.")]
    preprocessing: str
    max_batch_size: Annotated[int, Field(description="Images in one batch.")]
    compiled_batch_sizes: Annotated[
        tuple[int, ...], Field(description="Sizes that batches are padded to; empty if every size runs as it is.")
    ]

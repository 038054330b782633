"""Results, as the service answers them."""

from dataclasses import dataclass, field

from vit_serve_client.errors import VitError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class with its scores."""

    label: str
    class_index: int
    probability: float | None
    """None if the model's `activation` is `none`."""
    logit: float


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of one image."""

    predictions: tuple[Prediction, ...]
    """The `top_k` classes with the largest logits, best first."""
    logits: tuple[float, ...] | None
    """In class order; None unless asked for with `vectors`."""
    probabilities: tuple[float, ...] | None
    """In class order; None unless asked for, and without an activation."""
    model: str
    activation: str
    request_id: str | None
    """Id of the request in the service's log; images of one batch share it."""
    timings: dict[str, float] = field(compare=False)
    """Milliseconds of each step, by the names in the header `Server-Timing`; of a batch, the longest of its images."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of one image."""

    vector: tuple[float, ...]
    pooling: str
    """Kind of features, of those that the service's `GET /model` lists."""
    normalized: bool
    model: str
    request_id: str | None
    timings: dict[str, float] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Relevance of each patch of one image for a class."""

    relevance: tuple[tuple[float, ...], ...]
    """By row and column of the patches, from 0 to 1, the largest; all are 0 if nothing counts."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the part of the image that the patches cover, in its pixels."""
    size: tuple[int, int]
    """Width and height of the image, turned upright, in pixels."""
    method: str
    class_index: int | None
    """None for an encoder, as the label is."""
    label: str | None
    probability: float | None
    """None if the model's `activation` is `none`."""
    model: str
    request_id: str | None
    timings: dict[str, float] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """Stands in the place of the result of an image that was not classified."""

    error: VitError


@dataclass(frozen=True, slots=True)
class Features:
    """One kind of features that the model gives."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Model:
    """Description of the served model."""

    name: str
    architecture: str
    labels: tuple[str, ...]
    """In class order; empty for an encoder without a classifier."""
    labels_source: str
    activation: str
    image_size: int
    """Side of the model's square input, in pixels."""
    patch_size: int | None
    parameters: int
    served_by: str
    output_size: int
    features: tuple[Features, ...]
    """Kinds of features, the usual one first; empty if the model gives none."""
    explanations: tuple[str, ...]
    """Methods of `explain`, the usual one first; empty if the model is not explained."""
    engine: str
    device: str
    dtype: str
    preprocessing: str
    max_batch_size: int
    compiled_batch_sizes: tuple[int, ...]

"""Parameters of requests and bodies of answers, as OpenAPI shows them."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.http.numbers import whole_number
from app.serving.results import Activation, Prediction
from app.serving.served_model import State

EXAMPLE_IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGP8z4APMOGVHbHSAA0YAQ87n0dIAAAAAElFTkSuQmCC"
"""A PNG of 8 x 8 pixels in base64."""


def _count(sent: str | int) -> int:
    count = whole_number(str(sent))
    if count is None:
        raise PydanticCustomError("whole_number", "Input should be a whole number, in digits")
    return count


class _OfModel(BaseModel):
    model: Annotated[
        str | None, Field(description="Name of the model, of those that `GET /models` lists; the first of them by default.")
    ] = None


class Ranking(_OfModel):
    """Parameters of the answer to an image."""

    top_k: Annotated[
        int,
        BeforeValidator(_count),
        Field(ge=1, description="Number of classes to rank; more than there are gives all of them."),
    ] = 5
    vectors: Annotated[bool, Field(description="Include the full `logits` and `probabilities`.")] = True


class _Named(BaseModel):
    model: str
    activation: Activation


class ResultBody(BaseModel):
    """Scores of one image."""

    predictions: Annotated[list[Prediction], Field(description="The `top_k` classes with the largest logits, best first.")]
    logits: Annotated[
        list[float] | None, Field(description="The head's outputs in class order; left out with `vectors=false`.")
    ] = None
    probabilities: Annotated[
        list[float] | None,
        Field(
            description="By `activation`, in class order; null if that is `none`, left out with `vectors=false`. "
            "Those of `softmax` sum to 1."
        ),
    ] = None


class PredictBody(ResultBody, _Named):
    """Answer of `POST /predict`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "vit-small-everyday64",
                "activation": "softmax",
                "predictions": [{"label": "tabby cat", "class_index": 17, "probability": 0.913, "logit": 8.12}],
                "logits": [-1.9, 0.3],
                "probabilities": [0.1, 0.9],
            }
        }
    )


class Embedding(_OfModel):
    """Parameters of the features of an image."""

    pooling: Annotated[
        str | None, Field(description="Kind of features, of those that `GET /model` lists; the first of them by default.")
    ] = None
    normalize: Annotated[bool, Field(description="Scale them to length 1.")] = False


class _Features(BaseModel):
    model: str
    pooling: str
    normalized: bool
    size: int


class VectorBody(BaseModel):
    """Features of one image in a batch."""

    embedding: list[float]


class EmbedBody(_Features):
    """Answer of `POST /embed`."""

    embedding: list[float]


class Explaining(_OfModel):
    """Parameters of an explanation."""

    method: Annotated[
        str | None, Field(description="`relevance` for the class (the default), or `rollout` of attention, for no class.")
    ] = None
    class_: Annotated[
        str | None, Field(alias="class", description="Label or index of the class to explain; the first one by default.")
    ] = None
    class_index: Annotated[
        int | None,
        BeforeValidator(_count),
        Field(ge=0, description="Index of the class, where labels are numbers, or several classes have the same."),
    ] = None
    opacity: Annotated[float, Field(ge=0, le=1, description="Opacity of the colours, in a picture.")] = 0.6


class ImageSize(BaseModel):
    """Size of the uploaded image, turned upright, in pixels."""

    width: int
    height: int


class PatchGrid(BaseModel):
    """Grid of patches, and the part of the uploaded image that it covers, in its pixels."""

    rows: int
    columns: int
    left: float
    top: float
    right: float
    bottom: float


class ExplainBody(BaseModel):
    """Answer of `POST /explain`."""

    model: str
    method: str
    class_index: Annotated[int | None, Field(description="null for an encoder.")]
    label: str | None
    probability: Annotated[float | None, Field(description="null if the outputs are not classes.")]
    image: ImageSize
    grid: PatchGrid
    relevance: Annotated[
        list[list[float]], Field(description="By row and column, from 0 to 1, the largest; all are 0 if nothing counts.")
    ]


class Problem(BaseModel):
    """Error body of RFC 9457, with a stable `code`."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class FailedBody(BaseModel):
    """Error of one image in a batch."""

    error: Problem


class PredictBatchBody(_Named):
    """Answer of `POST /predict/batch`: a result or an error for each image, in the order sent."""

    results: list[ResultBody | FailedBody]


class EmbedBatchBody(_Features):
    """Answer of `POST /embed/batch`: features or an error for each image, in the order sent."""

    results: list[VectorBody | FailedBody]


class HealthBody(BaseModel):
    """Answer of `GET /health/live`."""

    status: str


class ReadyBody(HealthBody):
    """Answer of `GET /health/ready`."""

    models: Annotated[dict[str, State], Field(description="State of each model.")]


class ListedModel(BaseModel):
    """A model in the answer of `GET /models`."""

    name: str
    aliases: tuple[str, ...]
    state: State
    default: Annotated[bool, Field(description="It answers requests that name no model.")]
    bytes: Annotated[int, Field(description="Memory that it took when it was loaded; 0 while it is not.")]
    reason: Annotated[str, Field(description="Why its last load failed; empty if it did not.")]


class ModelsBody(BaseModel):
    """Answer of `GET /models`."""

    models: list[ListedModel]

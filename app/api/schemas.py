"""Bodies of requests and answers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from model.head import HeadActivation

Activation = Annotated[
    HeadActivation,
    Field(description="What makes probabilities of logits; `none` if outputs are measured values: then there are none."),
]


class PredictionBody(BaseModel):
    """One class and what the model says of it."""

    label: str
    class_index: int
    probability: Annotated[float | None, Field(description="null if `activation` is `none`.")]
    logit: float


class _Named(BaseModel):
    model: str
    activation: Activation


class ResultBody(BaseModel):
    """What the model says of one image."""

    predictions: Annotated[list[PredictionBody], Field(description="The `top_k` classes with the largest logits, best first.")]
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


class Problem(BaseModel):
    """An error as RFC 9457 describes it, with a `code` that never changes its meaning."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class FailedBody(BaseModel):
    """An image of a batch that could not be classified."""

    error: Problem


class PredictBatchBody(_Named):
    """Answer of `POST /predict/batch`: a result or an error for each image, in the order sent."""

    results: list[ResultBody | FailedBody]


class ModelBody(BaseModel):
    """Answer of `GET /model`."""

    name: str
    architecture: str
    labels: Annotated[list[str], Field(description="In class order.")]
    labels_source: Annotated[
        str,
        Field(
            description="`config.json`, `labels.txt`, the published list that the model was trained on and what says so, or "
            "`none`: then classes have numbers."
        ),
    ]
    activation: Activation
    image_size: Annotated[int, Field(description="Side of the model's square input, in pixels.")]
    patch_size: Annotated[int, Field(description="Side of a patch, in pixels.")]
    parameters: int
    engine: Annotated[str, Field(description="`torch` or `openvino`.")]
    device: str
    dtype: Annotated[str, Field(description="`float32`, `bfloat16`, `float16` or `int8`.")]
    preprocessing: str
    max_batch_size: Annotated[int, Field(description="Images in one run.")]
    compiled_batch_sizes: Annotated[
        list[int], Field(description="Batches are padded to these sizes; empty if every size runs as it is.")
    ]


class HealthBody(BaseModel):
    """Answer of `GET /health/live` and `GET /health/ready`."""

    status: str

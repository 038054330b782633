"""POST /predict and POST /predict/batch."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.api.dependencies import AdmissionDep, while_connected
from app.api.forms import BodyLimits, read_image, read_images
from app.api.problems import problem_headers, problem_of, problem_responses
from app.api.schemas import FailedBody, PredictBatchBody, PredictBody, PredictionBody, ResultBody
from app.classifier import Classification, Classifier, Prediction, Timings
from app.images import check_work
from app.settings import Settings

router = APIRouter(tags=["predict"])

TopK = Annotated[int, Query(ge=1, description="How many classes to rank; more than there are gives all of them.")]
Vectors = Annotated[bool, Query(description="Whether to include the full `logits` and `probabilities`.")]

_ERRORS = problem_responses(
    errors.MalformedRequest,
    errors.Unauthorized,
    errors.ImageTooLarge,
    errors.UnsupportedImageFormat,
    errors.UndecodableImage,
    errors.InvalidParameter,
    errors.RateLimited,
    errors.QueueFull,
    errors.InferenceFailed,
    errors.InternalError,
    errors.NotReady,
    errors.Draining,
    errors.DeadlineExceeded,
)

_TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGP8z4APMOGVHbHSAA0YAQ87n0dIAAAAAElFTkSuQmCC"
_BINARY = {"type": "string", "format": "binary"}
_PREDICT_FORMS = {
    "multipart/form-data": {
        "schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY}},
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "description": "base64, or a data: URI"}},
        },
        "example": {"image": _TINY_PNG},
    },
    "image/*": {"schema": _BINARY},
    "application/octet-stream": {"schema": _BINARY},
}
_BATCH_FORMS = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "items": _BINARY}},
        },
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "items": {"type": "string"}}},
        },
        "example": {"images": [_TINY_PNG, _TINY_PNG]},
    },
}


def _body(forms: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": forms}}


@router.post("/predict", response_model=PredictBody, responses=_ERRORS, openapi_extra=_body(_PREDICT_FORMS))
async def predict(
    request: Request,
    admission: AdmissionDep,
    top_k: TopK = 5,
    vectors: Vectors = True,
) -> Response:
    """Classify one image, sent as a multipart part `image`, as the raw body, or as base64 in JSON."""
    classifier, deadline = admission.classifier, admission.deadline
    image_bytes = await admission.upload(read_image(request, _limits(admission.settings), admission.hold))
    classification = await while_connected(request, classifier.classify(image_bytes, deadline))
    request.state.timings = classification.timings
    result = _result(classification, top_k, vectors)
    answer = PredictBody(model=classifier.name, **dict(result))
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


@router.post("/predict/batch", response_model=PredictBatchBody, responses=_ERRORS, openapi_extra=_body(_BATCH_FORMS))
async def predict_batch(
    request: Request,
    admission: AdmissionDep,
    top_k: TopK = 5,
    vectors: Vectors = True,
) -> Response:
    """Classify several images, sent as multipart parts `images` or as base64 in JSON; a bad one fails alone."""
    classifier, deadline = admission.classifier, admission.deadline
    images = await admission.upload(read_images(request, _limits(admission.settings), admission.hold))
    check_work(images, admission.settings.max_image_pixels, admission.settings.max_request_pixels)
    outcomes = await while_connected(request, _classify_all(classifier, images, deadline))
    done = [outcome for outcome in outcomes if isinstance(outcome, Classification)]
    request.state.timings = _longest([classification.timings for classification in done])
    results = [
        _result(outcome, top_k, vectors) if isinstance(outcome, Classification) else FailedBody(error=problem_of(outcome))
        for outcome in outcomes
    ]
    answer = PredictBatchBody(model=classifier.name, results=results)
    refused = max((error for error in outcomes if isinstance(error, errors.Refused)), key=_patience, default=None)
    headers = None if refused is None else problem_headers(refused)
    return Response(answer.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")


async def _classify_all(
    classifier: Classifier, images: list[bytes], deadline: float
) -> list[Classification | errors.ServiceError]:
    """Every image's classification or its own error, in order; an error that is no ServiceError fails the request."""

    request = object()

    async def classify(image_bytes: bytes) -> Classification | errors.ServiceError:
        try:
            if not image_bytes:
                raise errors.MalformedRequest("The image is empty.")
            return await classifier.classify(image_bytes, deadline, request)
        except errors.ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(classify(image_bytes)) for image_bytes in images]
    return [task.result() for task in tasks]


def _patience(refusal: errors.Refused) -> float:
    return refusal.retry_after_s


def _limits(settings: Settings) -> BodyLimits:
    return BodyLimits(settings.max_image_bytes, settings.max_request_bytes, settings.max_images_per_request)


def _result(classification: Classification, top_k: int, vectors: bool) -> ResultBody:
    return ResultBody(
        predictions=[_prediction(prediction) for prediction in classification.top(top_k)],
        logits=classification.logits.tolist() if vectors else None,
        probabilities=classification.probabilities.tolist() if vectors else None,
    )


def _prediction(prediction: Prediction) -> PredictionBody:
    return PredictionBody(
        label=prediction.label,
        class_index=prediction.class_index,
        probability=prediction.probability,
        logit=prediction.logit,
    )


def _longest(timings: list[Timings]) -> Timings | None:
    """Of images that were worked on side by side, the longest time in each step."""
    if not timings:
        return None
    return Timings(
        decode_s=max(timing.decode_s for timing in timings),
        queue_s=max(timing.queue_s for timing in timings),
        inference_s=max(timing.inference_s for timing in timings),
    )

"""POST /predict and POST /predict/batch."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError, to_json

from app import errors
from app.api.dependencies import AdmittedDep, while_connected
from app.api.payloads.body import Image
from app.api.payloads.images import read_image, read_images
from app.api.problems import problem_headers, problem_of, problem_responses
from app.api.schemas import FailedBody, PredictBatchBody, PredictBody
from app.decoding.limits import check_work
from app.http.numbers import whole_number
from app.http.time_slices import Steps
from app.serving.classifier import Classifier
from app.serving.results import Classification, Timings

router = APIRouter(tags=["predict"])


def _count(sent: str | int) -> int:
    count = whole_number(str(sent))
    if count is None:
        raise PydanticCustomError("whole_number", "Input should be a whole number, in digits")
    return count


TopK = Annotated[
    int, BeforeValidator(_count), Query(ge=1, description="Number of classes to rank; more than there are gives all of them.")
]
Vectors = Annotated[bool, Query(description="Include the full `logits` and `probabilities`.")]

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

_CLASSES_AT_ONCE = 256
"""Classes written in one step."""

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


def _forms(forms: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": forms}}


@router.post("/predict", response_model=PredictBody, responses=_ERRORS, openapi_extra=_forms(_PREDICT_FORMS))
async def predict(
    request: Request,
    admitted: AdmittedDep,
    top_k: TopK = 5,
    vectors: Vectors = True,
) -> Response:
    """Classify one image, sent as a multipart part `image`, as the raw body, or as base64 in JSON."""
    classifier = admitted.classifier
    async with admitted.service.uploading(admitted.deadline):
        image_bytes = await read_image(admitted.body, admitted.limits)
    classification = await while_connected(request, classifier.classify(image_bytes, admitted.deadline))
    request.state.timings = classification.timings
    result = await admitted.slices.work(_result(classification, top_k, vectors))
    return _answer(classifier, result.removeprefix(b"{"))


@router.post("/predict/batch", response_model=PredictBatchBody, responses=_ERRORS, openapi_extra=_forms(_BATCH_FORMS))
async def predict_batch(
    request: Request,
    admitted: AdmittedDep,
    top_k: TopK = 5,
    vectors: Vectors = True,
) -> Response:
    """Classify several images, sent as multipart parts `images` or as base64 in JSON; a bad one fails alone."""
    classifier, settings = admitted.classifier, admitted.settings
    async with admitted.service.uploading(admitted.deadline):
        images = await read_images(admitted.body, admitted.limits)
    encoded = [image for image in images if isinstance(image, bytes)]
    await admitted.slices.work(check_work(encoded, settings.max_image_pixels, settings.max_request_pixels))
    outcomes = await while_connected(request, _classify_all(classifier, images, admitted.deadline))
    done = [outcome for outcome in outcomes if isinstance(outcome, Classification)]
    request.state.timings = _longest([classification.timings for classification in done])
    results = await admitted.slices.work(_results(outcomes, top_k, vectors))
    refused = max((error for error in outcomes if isinstance(error, errors.Refused)), key=_patience, default=None)
    headers = None if refused is None else problem_headers(refused)
    return _answer(classifier, b'"results":' + results + b"}", headers)


async def _classify_all(
    classifier: Classifier, images: list[Image], deadline: float
) -> list[Classification | errors.ServiceError]:
    """Return each image's classification or error, in order. An error that is no ServiceError fails the request."""
    request = object()

    async def classify(image: Image) -> Classification | errors.ServiceError:
        if isinstance(image, errors.ServiceError):
            return image
        try:
            return await classifier.classify(image, deadline, request)
        except errors.ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(classify(image)) for image in images]
    return [task.result() for task in tasks]


def _patience(refusal: errors.Refused) -> float:
    return refusal.retry_after_s


def _answer(classifier: Classifier, fields: bytes, headers: dict[str, str] | None = None) -> Response:
    """Return a `PredictBody` or `PredictBatchBody` around fields that are JSON already."""
    which = to_json(classifier.name), to_json(classifier.activation)
    return Response(b'{"model":%b,"activation":%b,%b' % (*which, fields), 200, headers, "application/json")


def _results(outcomes: Sequence[Classification | errors.ServiceError], top_k: int, vectors: bool) -> Steps[bytes]:
    written = []
    for outcome in outcomes:
        if isinstance(outcome, Classification):
            written.append((yield from _result(outcome, top_k, vectors)))
        else:
            written.append(to_json(FailedBody(error=problem_of(outcome))))
    return b"[%b]" % b",".join(written)


def _result(classification: Classification, top_k: int, vectors: bool) -> Steps[bytes]:
    """Return a `ResultBody` as JSON, in steps: 32 images with 1,000 classes take pydantic a second."""
    ranked = classification.ranked(top_k)
    predictions = yield from _array(classification.predictions(piece) for piece in _pieces(ranked))
    fields = [b'"predictions":' + predictions]
    if vectors:
        fields.append(b'"logits":' + (yield from _array(piece.tolist() for piece in _pieces(classification.logits))))
        probabilities = classification.probabilities
        fields.append(
            b'"probabilities":'
            + (b"null" if probabilities is None else (yield from _array(piece.tolist() for piece in _pieces(probabilities))))
        )
    return b"{%b}" % b",".join(fields)


def _array(pieces: Iterable[list[Any]]) -> Steps[bytes]:
    written = []
    for piece in pieces:
        written.append(to_json(piece)[1:-1])
        yield
    return b"[%b]" % b",".join(written)


def _pieces(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (numbers[start : start + _CLASSES_AT_ONCE] for start in range(0, len(numbers), _CLASSES_AT_ONCE))


def _longest(timings: list[Timings]) -> Timings | None:
    """Return the longest time in each step, for images that were processed concurrently."""
    if not timings:
        return None
    return Timings(
        decode_s=max(timing.decode_s for timing in timings),
        queue_s=max(timing.queue_s for timing in timings),
        inference_s=max(timing.inference_s for timing in timings),
    )

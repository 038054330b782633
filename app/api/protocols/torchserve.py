"""TorchServe's inference API with its `image_classifier`: https://pytorch.org/serve/inference_api.html"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from app.api.classify import classify_each
from app.api.dependencies import Admitted, AdmittedDep
from app.api.payloads.images import ANY_NAMES, read_image
from app.api.problems import ErrorResponse
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import status_of
from app.api.protocols.model_names import check_version
from app.api.protocols.scores import json_response, ranked
from app.api.schemas import EXAMPLE_IMAGE, Problem
from app.api.wire import Wire
from app.serving.results import Classification

router = APIRouter(tags=["torchserve"], responses=declared("type", "message", code="integer"))

_CLASSES = 5
_BODY = json_body({"data": EXAMPLE_IMAGE})

_TYPES = {
    400: "BadRequestException",
    401: "InvalidKeyException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    413: "RequestTooLargeException",
    429: "TooManyRequestsException",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
    504: "InferenceTimeoutException",
}


@router.put("/predictions/{name}", openapi_extra=_BODY)
@router.post("/predictions/{name}", openapi_extra=_BODY)
@router.put("/predictions/{name}/{version}", openapi_extra=_BODY)
@router.post("/predictions/{name}/{version}", openapi_extra=_BODY)
async def predict(request: Request, admitted: AdmittedDep, name: str, version: str | None = None) -> Response:
    """Classify an image: the raw body, a part `data` or `body`, or base64 in JSON."""
    admitted.classifier.check_classes()
    check_version(name, version)
    (classification,) = await classify_each(request, admitted, [await _read(admitted)], "image")
    return json_response(to_json(_by_label(classification)))


async def _read(admitted: Admitted) -> Any:
    if admitted.body.media_type == b"application/json":
        content = await fields.read_value(admitted)
        return (await fields.decode_each(admitted, [content], "image"))[0]
    async with admitted.state.service.uploading(admitted.deadline):
        return await read_image(admitted.body, admitted.state.body_limits, ANY_NAMES)


def _by_label(classification: Classification) -> dict[str, float]:
    """Return score by label, best first; of classes with one label the best."""
    best: dict[str, float] = {}
    for row in ranked(classification, _CLASSES):
        best.setdefault(row["label"], row["score"])
    return best


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    status = 400 if problem.status == 415 else status_of(problem)
    kind = _TYPES.get(status, "InternalServerException" if status >= 500 else "BadRequestException")
    return ErrorResponse(problem, {"code": status, "type": kind, "message": problem.detail}, status, headers)


WIRE = Wire("torchserve", (router,), _render, prefixes=("/predictions",))

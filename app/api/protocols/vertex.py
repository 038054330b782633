"""Vertex AI's custom containers, with its own schema for image classification, on the paths that `AIP_*` names.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.classify import classify_each
from app.api.dependencies import AdmittedDep, ServiceDep
from app.api.problems import ErrorResponse
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import status_of
from app.api.protocols.scores import json_response, scores, write_rows
from app.api.schemas import EXAMPLE_IMAGE, Problem
from app.api.wire import Wire
from app.errors import InvalidParameter
from app.serving.results import Classification

_PARAMETERS = frozenset({"maxPredictions", "confidenceThreshold"})
_MAX_PREDICTIONS = 10
_LARGEST = float(np.finfo(np.float32).max)
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BODY = json_body({"instances": [{"content": EXAMPLE_IMAGE}], "parameters": {"maxPredictions": 2}})


def vertex_wire(predict_route: str | None, health_route: str | None) -> Wire:
    """Return the wire with these paths; without one of them that part is left out."""
    router = APIRouter(tags=["vertex"], responses=declared(error="object"))
    if predict_route is not None:
        router.add_api_route(predict_route, _predict, methods=["POST"], openapi_extra=_BODY)
    if health_route is not None:
        router.add_api_route(health_route, _health, methods=["GET"])
    health = frozenset() if health_route is None else frozenset({health_route})
    paths = health if predict_route is None else health | {predict_route}
    return Wire("vertex", (router,), _render, health_paths=health, paths=paths)


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    """Render an error as Google's APIs do: https://google.aip.dev/193."""
    status = status_of(problem)
    error = {"code": status, "message": problem.detail, "status": _STATUSES.get(status, "INTERNAL")}
    return ErrorResponse(problem, {"error": error}, status, headers)


async def _health(service: ServiceDep) -> dict[str, str]:
    """Answer 200 while images can be classified."""
    service.check_ready()
    return {"status": "ready"}


async def _predict(request: Request, admitted: AdmittedDep) -> Response:
    """Classify `instances`, in Google's schema for image classification."""
    admitted.classifier.check_classes()
    content = await fields.read_object(admitted)
    predict = _prediction(fields.as_object(content.get("parameters"), "parameters"))
    images = await fields.decode_each(admitted, fields.as_list(content.get("instances"), "instances"), "instance")
    classifications = await classify_each(request, admitted, images, "instance")
    return json_response(b'{"predictions":%b}' % await admitted.state.slices.work(write_rows(map(predict, classifications))))


def _prediction(parameters: dict[str, Any]) -> Callable[[Classification], dict[str, Any]]:
    fields.refuse_unknown(parameters, _PARAMETERS, "the parameter")
    most = fields.as_count(parameters.get("maxPredictions", _MAX_PREDICTIONS), "maxPredictions")
    least = parameters.get("confidenceThreshold", 0.0)
    if not isinstance(least, int | float) or isinstance(least, bool) or not abs(least) <= _LARGEST:
        raise InvalidParameter("`confidenceThreshold` must be a number that float32 can hold.")

    def predict(classification: Classification) -> dict[str, Any]:
        ranked = classification.ranked(most)
        confidences = scores(classification)
        kept = ranked if "confidenceThreshold" not in parameters else ranked[confidences[ranked] >= np.float32(least)]
        labels = [classification.labels[index] for index in kept]
        return {"ids": [str(index) for index in kept], "displayNames": labels, "confidences": confidences[kept].tolist()}

    return predict

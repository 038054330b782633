"""Hugging Face's inference API for image classification: `InferenceClient` and `@huggingface/inference` with this URL.

https://huggingface.co/docs/inference-providers/tasks/image-classification
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast, get_args

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.classify import classify_each
from app.api.dependencies import CHECKED, Admitted, AdmittedDep, ServiceDep
from app.api.payloads.images import SINGLE_NAMES, read_image
from app.api.problems import ErrorResponse
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.model_names import served_name
from app.api.protocols.scores import json_response, ranked, write_rows
from app.api.schemas import EXAMPLE_IMAGE, Problem
from app.api.wire import Wire
from app.errors import InvalidParameter, MalformedRequest, TooManyConnections
from app.http.numbers import whole_number
from app.serving.results import Classification
from model.head import HeadActivation

router = APIRouter(tags=["huggingface"], responses=declared("error"))

_TOP_K = 5
_PARAMETERS = frozenset({"top_k", "function_to_apply"})
_HOLD_S = 0.5
"""Seconds before a 503: the JavaScript client asks again at once and without end, whatever `Retry-After` says."""


@router.post("/models/{name}", openapi_extra=json_body({"inputs": EXAMPLE_IMAGE, "parameters": {"top_k": 2}}))
@router.post("/", openapi_extra=json_body({"inputs": EXAMPLE_IMAGE, "parameters": {"top_k": 2}}))
async def classify(request: Request, admitted: AdmittedDep) -> Response:
    """Classify an image, raw or as `{"inputs": "<base64>", "parameters": {...}}`; parameters also in the query."""
    admitted.classifier.check_classes()
    if admitted.body.media_type == b"application/json":
        return await answer_json(request, admitted, await fields.read_object(admitted))
    return await answer_raw(request, admitted)


@router.get("/info", dependencies=CHECKED)
async def info(request: Request, service: ServiceDep) -> dict[str, Any]:
    """Describe the model as text-generation-inference's `/info` does."""
    classifier = service.ready_classifier(request.query_params.get("model"))
    model = classifier.describe()
    described = {"model_id": served_name(classifier), "model_type": model.architecture, "model_dtype": model.dtype}
    return described | {"model_device_type": model.device, "task": "image-classification", "classes": len(model.labels)}


async def answer_raw(request: Request, admitted: Admitted, part_names: frozenset[bytes] = SINGLE_NAMES) -> Response:
    """Answer an image that is the body, or a part of it."""
    top_k, function = _parameters(request, {})
    async with admitted.state.service.uploading(admitted.deadline):
        image = await read_image(admitted.body, admitted.state.body_limits, part_names)
    (classification,) = await classify_each(request, admitted, [image], "image")
    return json_response(await admitted.state.slices.work(write_rows(ranked(classification, top_k, function))))


async def answer_json(request: Request, admitted: Admitted, content: dict[str, Any]) -> Response:
    """Answer one image with a list of labels, and a list of images with a list of these."""
    if "inputs" not in content:
        raise MalformedRequest("There is no image: send it as the raw body, or in base64 as `inputs`.")
    top_k, function = _parameters(request, fields.as_object(content.get("parameters"), "parameters"))
    several = isinstance(content["inputs"], list)
    inputs = content["inputs"] if several else [content["inputs"]]
    images = await fields.decode_each(admitted, inputs, "input")
    classifications = await classify_each(request, admitted, images, "input")

    def rows(classification: Classification) -> list[dict[str, Any]]:
        return ranked(classification, top_k, function)

    if not several:
        return json_response(await admitted.state.slices.work(write_rows(rows(classifications[0]))))
    return json_response(await admitted.state.slices.work(write_rows(map(rows, classifications))))


def _parameters(request: Request, given: dict[str, Any]) -> tuple[int, HeadActivation | None]:
    """Return `top_k` and `function_to_apply`; the body's have precedence over the query's."""
    fields.refuse_unknown(given, _PARAMETERS, "the parameter")
    query = request.query_params
    top_k = given["top_k"] if "top_k" in given else whole_number(query.get("top_k", str(_TOP_K)))
    function = given.get("function_to_apply")
    named = query.get("function_to_apply") if function is None else fields.as_text(function, "function_to_apply")
    if named is not None and named not in get_args(HeadActivation):
        raise InvalidParameter(f"`function_to_apply` must be one of {', '.join(get_args(HeadActivation))}.")
    return fields.as_count(top_k, "top_k"), cast(HeadActivation | None, named)


class _HeldResponse(ErrorResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(_HOLD_S)
        await super().__call__(scope, receive, send)


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    # not where a connection of the reserve is refused, on which probes are answered
    held = problem.status == 503 and problem.code != TooManyConnections.code
    response = _HeldResponse if held else ErrorResponse
    status = 400 if problem.code == InvalidParameter.code else problem.status
    return response(problem, {"error": problem.detail}, status, headers)


WIRE = Wire("huggingface", (router,), _render, paths=frozenset({"/", "/info"}), prefixes=("/models",))

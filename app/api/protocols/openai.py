"""OpenAI's embeddings, of images: `client.embeddings.create(model=..., input="data:image/jpeg;base64,...")`.

https://platform.openai.com/docs/api-reference/embeddings
"""

import base64
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from app.api.classify import all_or_none, embed_all
from app.api.dependencies import AcceptedDep, Admitted
from app.api.problems import ErrorResponse
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import status_of
from app.api.protocols.scores import json_response, write_rows
from app.api.schemas import EXAMPLE_IMAGE, Problem
from app.api.wire import Wire
from app.errors import InvalidParameter, MalformedRequest
from app.http.time_slices import Steps
from app.serving.results import Embedding

PATH = "/v1/embeddings"

router = APIRouter(tags=["openai"], responses=declared(error="object"))

_FORMATS = ("float", "base64")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_EXAMPLE = {"model": "vit-small-everyday64", "input": f"data:image/png;base64,{EXAMPLE_IMAGE}"}


@router.post(PATH, openapi_extra=json_body(_EXAMPLE))
async def embeddings(request: Request, accepted: AcceptedDep) -> Response:
    """Return the usual features of the images in `input`: data URIs, or base64."""
    content = await fields.read_object(accepted)
    model = fields.as_text(content.get("model"), "model")
    async with accepted.to_model(model) as admitted:
        return await _answer(request, admitted, model, content)


async def _answer(request: Request, admitted: Admitted, model: str, content: dict[str, Any]) -> Response:
    features = admitted.classifier.check_features(None)
    encoding = (
        "float" if content.get("encoding_format") is None else fields.as_text(content["encoding_format"], "encoding_format")
    )
    if encoding not in _FORMATS:
        raise InvalidParameter(f"`encoding_format` must be one of {', '.join(_FORMATS)}.")
    size = admitted.classifier.model.features[0].size
    if content.get("dimensions") is not None and fields.as_count(content["dimensions"], "dimensions") != size:
        raise InvalidParameter(f"`dimensions` must be {size}: the features of this model cannot be shortened.")
    if "input" not in content:
        raise MalformedRequest("There is no `input`: send an image as a data URI, or a list of them.")
    given = content["input"] if isinstance(content["input"], list) else [content["input"]]
    images = await fields.decode_each(admitted, given, "input")
    found = all_or_none(await embed_all(request, admitted, images, features), "input")
    return json_response(await admitted.state.slices.work(_write(model, found, encoding)))


def _write(model: str, found: list[Embedding], encoding: str) -> Steps[bytes]:
    data = yield from write_rows(
        {"object": "embedding", "index": index, "embedding": _vector(each, encoding)} for index, each in enumerate(found)
    )
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # of text, of which there is none
    return b'{"object":"list","data":%b,"model":%b,"usage":%b}' % (data, to_json(model), to_json(usage))


def _vector(embedding: Embedding, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(embedding.vector.astype("<f4").tobytes()).decode()
    return embedding.vector.tolist()


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    status = status_of(problem)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": problem.detail, "type": kind, "param": None, "code": problem.code}
    return ErrorResponse(problem, {"error": error}, status, headers)


WIRE = Wire("openai", (router,), _render, paths=frozenset({PATH}))

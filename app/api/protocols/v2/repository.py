"""Triton's extension of the model repository: models with their state, and loading and unloading them with the admin key.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.dependencies import CHECKED, ServiceDep, check_admin
from app.api.payloads.body import Body
from app.api.payloads.json_object import not_an_object, read_json_value
from app.api.protocols.declarations import declared
from app.api.protocols.model_names import VERSION
from app.api.protocols.v2.names import all_names, parse_name
from app.api.state import state_of
from app.errors import InvalidParameter, NotSupported

router = APIRouter(tags=["v2"], responses=declared("error"))

_MAX_BODY_BYTES, _MAX_VALUES = 65_536, 100
_STATES = {"ready": "READY", "loading": "LOADING", "unloaded": "UNAVAILABLE"}
_UNLOAD_FIRST = "unload_first"


@router.post("/v2/repository/index", dependencies=CHECKED)
async def index(service: ServiceDep) -> list[dict[str, str]]:
    """List the names of all models with their state, and why those that are not ready are not."""
    models, listed = service.models, []
    for name in all_names(models):
        model = models.find(parse_name(models, name)[0])
        reason = model.why_not_loaded or model.why_not_ready or ""
        listed.append({"name": name, "version": VERSION, "state": _STATES[model.state], "reason": reason})
    return listed


@router.post("/v2/repository/models/{name}/load", dependencies=[Depends(check_admin)])
async def load(request: Request, service: ServiceDep, name: str) -> Response:
    """Load a model again as its settings are now, beside the version that answers, and answer once it has taken over.

    The parameter `unload_first`, in the query or in `parameters`, frees the version before it first.
    """
    service.check_accepting()
    parameters = await _parameters(request)
    if unknown := parameters.keys() - {_UNLOAD_FIRST}:
        raise NotSupported(f"The parameter {min(unknown)[:64]!r} is not supported: what a model is, its settings say.")
    unload_first = _flag(request.query_params.get(_UNLOAD_FIRST, parameters.get(_UNLOAD_FIRST, False)))
    loaded = await service.models.reread()
    model = service.models.find(name)
    if model not in loaded:
        await service.models.load(model, unload_first=unload_first)
    return Response()


@router.post("/v2/repository/models/{name}/unload", dependencies=[Depends(check_admin)])
async def unload(request: Request, service: ServiceDep, name: str) -> Response:
    """Unload a model, and answer once its requests have ended and its memory is free."""
    service.check_accepting()
    await _parameters(request)
    await service.models.unload(service.models.find(name))
    return Response()


async def _parameters(request: Request) -> dict[str, Any]:
    """Return `parameters` of the body, which may be empty."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return {}
    state = state_of(request.app)
    body = Body(request, lambda size: None, state.slices)  # too small to count
    async with state.service.uploading(request.state.arrival + state.settings.request_timeout_s):
        content = await read_json_value(body, _MAX_BODY_BYTES, _MAX_VALUES)
    parameters = content.get("parameters", {}) if isinstance(content, dict) else None
    if not isinstance(parameters, dict):
        raise not_an_object()
    return parameters


def _flag(value: Any) -> bool:
    flags = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    if not isinstance(value, str | bool) or value not in flags:
        raise InvalidParameter(f"`{_UNLOAD_FIRST}` must be true or false.")
    return flags[value]

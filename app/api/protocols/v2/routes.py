"""Routes of the protocol: https://github.com/kserve/open-inference-protocol, and extensions of Triton's HTTP/REST API."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.dependencies import CHECKED, AcceptedDep, ServiceDep
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import render_error
from app.api.protocols.model_names import check_version
from app.api.protocols.v2 import describe, repository
from app.api.protocols.v2.infer import answer_infer
from app.api.protocols.v2.names import all_names, parse_name
from app.api.schemas import EXAMPLE_IMAGE
from app.api.state import state_of
from app.api.wire import Wire
from app.errors import NotSupported
from app.serving.classifier import Classifier
from app.serving.served_model import ServedModel
from app.serving.service import Service

Kind = Literal["system", "cuda"]

router = APIRouter(tags=["v2"], responses=declared("error"))

_BODY = json_body({"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [EXAMPLE_IMAGE]}]})
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """Answer 200 while the process can answer."""
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(service: ServiceDep) -> dict[str, bool]:
    """Answer 200 while images can be classified."""
    service.check_ready()
    return {"ready": True, "live": True}


@router.get("/v2", dependencies=CHECKED)
@router.get("/v2/", dependencies=CHECKED, include_in_schema=False)
async def server() -> dict[str, Any]:
    """Name the server and the extensions of the protocol that it has."""
    return describe.server_metadata()


@router.get("/v2/models", dependencies=CHECKED)
async def models(service: ServiceDep) -> dict[str, Any]:
    """List the names of the models, as KServe asks."""
    service.check_accepting()
    return {"models": all_names(service.models)}


@router.get("/v2/models/stats", dependencies=CHECKED)
@router.get(f"{_MODEL}/stats", dependencies=CHECKED)
@router.get(f"{_VERSION}/stats", dependencies=CHECKED)
async def statistics(service: ServiceDep, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return counts and durations since the start, of one name or of all that are loaded."""
    service.check_accepting()
    if name is not None:
        names: tuple[str, ...] = (name,)
        _classifier(service, name, version)
    else:
        names = tuple(each for each in all_names(service.models) if _model(service, each).state == "ready")
    return {"model_stats": [describe.model_statistics(_classifier(service, each).statistics, each) for each in names]}


@router.get(_MODEL, dependencies=CHECKED)
@router.get(_VERSION, dependencies=CHECKED)
async def metadata(service: ServiceDep, name: str, version: str | None = None) -> dict[str, Any]:
    """Describe inputs and outputs of the model under one of its names."""
    classifier = _classifier(service, name, version)
    return describe.model_metadata(classifier, name, pixels=parse_name(service.models, name)[1])


@router.get(f"{_MODEL}/ready", dependencies=CHECKED)
@router.get(f"{_VERSION}/ready", dependencies=CHECKED)
async def model_ready(service: ServiceDep, name: str, version: str | None = None) -> dict[str, Any]:
    """Answer 200 while the model classifies."""
    _classifier(service, name, version)
    return {"name": name, "ready": True}


@router.get(f"{_MODEL}/config", dependencies=CHECKED)
@router.get(f"{_VERSION}/config", dependencies=CHECKED)
async def config(request: Request, service: ServiceDep, name: str, version: str | None = None) -> dict[str, Any]:
    """Describe the model as Triton's model configuration."""
    classifier = _classifier(service, name, version)
    pixels = parse_name(service.models, name)[1]
    return describe.model_config(classifier, name, state_of(request.app).settings.max_images_per_request, pixels=pixels)


@router.post(f"{_MODEL}/infer", openapi_extra=_BODY)
@router.post(f"{_VERSION}/infer", openapi_extra=_BODY)
async def infer(request: Request, accepted: AcceptedDep, name: str, version: str | None = None) -> Response:
    """Classify encoded images, or the pixels of the model's input."""
    own, pixels = parse_name(accepted.state.service.models, name)
    async with accepted.to_model(own) as admitted:
        check_version(name, version)
        return await answer_infer(request, admitted, name, pixels=pixels)


@router.get("/v2/{kind}sharedmemory/status", dependencies=CHECKED)
@router.get("/v2/{kind}sharedmemory/region/{region}/status", dependencies=CHECKED)
async def shared_memory(kind: Kind) -> list[Any]:
    """Return the regions of shared memory: none."""
    return []


@router.post("/v2/{kind}sharedmemory/unregister", dependencies=CHECKED)
@router.post("/v2/{kind}sharedmemory/region/{region}/unregister", dependencies=CHECKED)
async def unregister(kind: Kind) -> Response:
    """Do nothing: no region is registered."""
    return Response()


@router.post("/v2/{kind}sharedmemory/region/{region}/register", dependencies=CHECKED)
async def register(kind: Kind, region: str) -> None:
    """Refuse: tensors are sent in the body."""
    raise NotSupported("Shared memory is not supported: send tensors in the body.")


@router.get("/v2/logging", dependencies=CHECKED)
@router.post("/v2/logging", dependencies=CHECKED)
@router.get("/v2/trace/setting", dependencies=CHECKED)
@router.post("/v2/trace/setting", dependencies=CHECKED)
@router.get(f"{_MODEL}/trace/setting", dependencies=CHECKED)
@router.post(f"{_MODEL}/trace/setting", dependencies=CHECKED)
async def refuse_settings() -> None:
    """Refuse: traces and logs are set by the service's own settings."""
    raise NotSupported("Traces and logs are set when the service starts, by its settings.")


def _model(service: Service, name: str) -> ServedModel:
    return service.models.find(parse_name(service.models, name)[0])


def _classifier(service: Service, name: str, version: str | None = None) -> Classifier:
    """Return the version of a model that answers now, by one of its names."""
    classifier = service.ready_classifier(parse_name(service.models, name)[0])
    check_version(name, version)
    return classifier


WIRE = Wire(
    "v2",
    (repository.router, router),
    render_error,
    health_paths=frozenset({"/v2/health/live", "/v2/health/ready"}),
    prefixes=("/v2",),
)

"""Health probes and greetings at the paths that several protocols share: `/`, `/health`, `/ping`, `/version`."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from app import __version__
from app.api.dependencies import ServiceDep
from app.api.problems import ErrorResponse
from app.api.protocols.declarations import declared
from app.api.schemas import Problem
from app.api.wire import Wire


def _router(path: str) -> APIRouter:
    router = APIRouter(tags=["operations"], responses=declared("status", "error"))
    router.add_api_route(path, _ROUTES[path], methods=["GET"])
    return router


async def _alive(response: Response) -> dict[str, str]:
    """Answer 200 while the process can answer, as KServe's liveness probe asks."""
    response.headers["Vary"] = "Accept"
    return {"status": "alive", "name": "vit-serve", "version": __version__}


async def _health(service: ServiceDep) -> dict[str, str]:
    """Answer 200 while images can be classified, as Hugging Face and MLflow ask."""
    service.check_ready()
    return {"status": "UP"}


async def _ping(service: ServiceDep) -> dict[str, str]:
    """Answer 200 while images can be classified, as SageMaker, TorchServe and MLflow ask."""
    service.check_ready()
    return {"status": "Healthy"}


async def _version() -> Response:
    """Return the version of the service as text, as MLflow asks."""
    return Response(__version__, media_type="text/plain")


_ROUTES: dict[str, Any] = {"/": _alive, "/health": _health, "/ping": _ping, "/version": _version}


def probe_wire(path: str, protocol: str) -> Wire:
    """Return the probe at a path, counted as a protocol's."""
    paths = frozenset({path}) - {"/"}  # POST / is a prediction
    return Wire(protocol, (_router(path),), _render, paths, paths=paths)


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    return ErrorResponse(problem, {"status": "Unhealthy", "error": problem.detail}, problem.status, headers)

"""Choice of the wires by the settings, without two of them on one path."""

from collections.abc import Sequence
from dataclasses import replace

import structlog
from fastapi import APIRouter
from starlette.routing import Match

from app.api import docs, metrics
from app.api.native import NATIVE, WITHOUT_PREDICT
from app.api.protocols import huggingface, invocations, openai, tensorflow, torchserve
from app.api.protocols.probes import probe_wire
from app.api.protocols.v2 import routes as v2
from app.api.protocols.vertex import vertex_wire
from app.api.wire import Wire, Wires
from app.errors import StartError
from app.settings import Settings

_log = structlog.get_logger(__name__)


def wires_of(settings: Settings) -> Wires:
    """Return the wires that `VIT_PROTOCOLS` names, the native one last: it renders the errors at unknown paths.

    Raises:
        StartError: only Vertex AI is named, without its path, or a path of Vertex AI belongs to another protocol.
    """
    protocols = settings.protocols
    native = NATIVE if "predict" in protocols else WITHOUT_PREDICT
    wires = [wire for name, wire in _WIRES.items() if name in protocols]
    if {"sagemaker", "mlflow", "torchserve"} & protocols:
        wires.append(invocations.WIRE)
    wires += [
        probe_wire(path, next(name for name in owners if name in protocols))
        for path, owners in _PROBES.items()
        if protocols.intersection(owners)
    ]
    if protocols == {"vertex"} and settings.vertex_predict_route is None:
        raise StartError("VIT_PROTOCOLS: vertex alone needs AIP_PREDICT_ROUTE or VIT_VERTEX_PREDICT_ROUTE")
    if "vertex" not in protocols or (settings.vertex_predict_route is None and settings.vertex_health_route is None):
        return Wires((*wires, native))
    return Wires(_with_vertex(settings, wires, native))


_WIRES: dict[str, Wire] = {
    "v2": v2.WIRE,
    "huggingface": huggingface.WIRE,
    "v1": tensorflow.WIRE,
    "torchserve": torchserve.WIRE,
    "openai": openai.WIRE,
}

_PROBES = {
    "/": ("v1", "huggingface"),
    "/health": ("huggingface", "mlflow"),
    "/ping": ("sagemaker", "torchserve", "mlflow"),
    "/version": ("mlflow",),
}
"""Paths of probes and the protocols that ask there."""


def _with_vertex(settings: Settings, wires: list[Wire], native: Wire) -> tuple[Wire, ...]:
    """Add Vertex AI's paths. Its predictions may take the place of `/predict`, and its probe that of another probe."""
    predict_route, health_route = settings.vertex_predict_route, settings.vertex_health_route
    if predict_route == "/predict" and native is NATIVE:
        _log.warning("POST /predict speaks Vertex AI's protocol, not the service's own", why="AIP_PREDICT_ROUTE")
        native = replace(native, direct_routes=native.direct_routes[1:])
    routers = [router for wire in (*wires, native) for router in wire.routers] + [docs.router, metrics.router]
    probes = {path for wire in (*wires, native) for path in wire.health_paths}
    if predict_route == health_route or (predict_route != "/predict" and _is_taken(predict_route, "POST", routers)):
        raise StartError(f"AIP_PREDICT_ROUTE: {predict_route} belongs to another protocol; choose another path")
    if health_route not in probes and _is_taken(health_route, "GET", routers):
        raise StartError(f"AIP_HEALTH_ROUTE: {health_route} belongs to another protocol; choose another path")
    vertex = vertex_wire(predict_route, None if health_route in probes else health_route)
    return (vertex, *wires, native)


def _is_taken(path: str | None, method: str, routers: Sequence[APIRouter]) -> bool:
    """Return True if a route of ours answers at a path."""
    if path is None:
        return False
    scope = {"type": "http", "path": path, "method": method}
    matches = (route.matches(scope)[0] for router in routers for route in router.routes)
    return path == "/openapi.json" or Match.FULL in matches

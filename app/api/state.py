"""AppState: the objects that routes and middleware share, made once by `create_app`."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.api.payloads.images import BodyLimits
from app.api.request_log import RequestLog
from app.api.wire import Wires
from app.auth.access import Access
from app.http.time_slices import TimeSlices
from app.metrics import Metrics
from app.serving.service import Service
from app.settings import Settings

if TYPE_CHECKING:  # imports OpenTelemetry's SDK, an extra
    from app.tracing.spans import Tracer


@dataclass(slots=True)
class AppState:
    """State of one application."""

    settings: Settings
    metrics: Metrics
    service: Service
    access: Access
    body_limits: BodyLimits
    slices: TimeSlices
    request_log: RequestLog
    wires: Wires
    tracer: "Tracer | None" = None
    """None unless traces are asked for."""
    starting: asyncio.Task[None] | None = None
    """Task that loads the model, from the start of the lifespan on."""


def state_of(app: FastAPI) -> AppState:
    """Return the state of an application made by `create_app`."""
    state: AppState = app.state.vit_serve
    return state

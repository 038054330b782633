"""create_app: the service as an ASGI application, for any ASGI server. Nothing is global."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import docs, page
from app.api import metrics as metrics_route
from app.api.direct_route import DirectRoutes
from app.api.middleware import HeadAsGet, PlainErrorsAsProblems, RequestContext, UnhandledErrors
from app.api.payloads.images import BodyLimits
from app.api.problems import common_problem_responses, install_problem_handlers
from app.api.protocols.select import wires_of
from app.api.request_log import RequestLog
from app.api.state import AppState
from app.api.traced_requests import TracedRequests
from app.auth.access import Access
from app.decoding.pool.select import make_decoder
from app.errors import StartError
from app.http.time_slices import TimeSlices
from app.metrics import Metrics
from app.process.startup import BUG, explain
from app.serving.loading import load_classifier
from app.serving.model_loader import Load
from app.serving.registry import MakeDecoder
from app.serving.service import Service
from app.settings import Settings
from app.tracing.start import start_tracing

_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    load: Load = load_classifier,
    make_decoder: MakeDecoder = make_decoder,
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> FastAPI:
    """Build the application. Models are loaded in the background once the server runs, so that probes are answered.

    Args:
        settings: settings of the service.
        load: loads a model.
        make_decoder: makes the decoder that models share.
        on_ready: called once all models are loaded.
        on_failure: called with the reason if a model cannot be loaded or its engine dies.

    Raises:
        StartError: the file of API keys cannot be used, a limit has nothing to count by, two protocols claim one path,
            or the list of models cannot be used.
    """
    state = _state(settings, load, make_decoder, on_ready)
    app = FastAPI(
        title="vit-serve",
        summary="Classifies images with a trained Vision Transformer.",
        version=__version__,
        lifespan=partial(_lifespan, state, on_failure),
        redirect_slashes=False,
        responses=common_problem_responses(),
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        # FastAPI's own spans and logs would have query strings and the texts of exceptions
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.vit_serve = state
    _add_routes(app, state)
    install_problem_handlers(app, state.wires)
    _add_middleware(app, state)
    return app


def _state(settings: Settings, load: Load, make_decoder: MakeDecoder, on_ready: Callable[[], None]) -> AppState:
    metrics, wires = Metrics(), wires_of(settings)
    return AppState(
        settings,
        metrics,
        service=Service(settings, metrics, load, make_decoder, on_ready),
        access=Access(settings, metrics),
        body_limits=BodyLimits(settings.max_image_bytes, settings.max_request_bytes, settings.max_images_per_request),
        slices=TimeSlices(),
        request_log=RequestLog(polled=wires.health_paths | {metrics_route.PATH}),
        wires=wires,
        tracer=start_tracing(os.environ),
    )


@asynccontextmanager
async def _lifespan(state: AppState, on_failure: Callable[[str], None], _: FastAPI) -> AsyncIterator[None]:
    state.starting = asyncio.create_task(_start(state.service, on_failure))
    watching = asyncio.create_task(state.service.models.watch())
    try:
        yield
    finally:
        state.starting.cancel()
        watching.cancel()
        await asyncio.wait([state.starting, watching])
        await state.service.close()
        state.request_log.close()
        if state.tracer is not None:
            await state.tracer.close()


def _add_routes(app: FastAPI, state: AppState) -> None:
    for wire in state.wires.wires:
        for router in wire.routers:
            app.include_router(router)
    if state.settings.page and "predict" in state.settings.protocols:  # which it asks
        app.router.routes.insert(0, page.PageRoute())
        app.include_router(page.router)
    if state.settings.docs:
        app.include_router(docs.router)
    if state.settings.metrics and state.settings.metrics_port is None:
        app.include_router(metrics_route.router)


def _add_middleware(app: FastAPI, state: AppState) -> None:
    """Add middleware from the innermost to the outermost."""
    app.add_middleware(UnhandledErrors, wires=state.wires)
    app.add_middleware(PlainErrorsAsProblems, wires=state.wires)
    app.add_middleware(HeadAsGet)
    app.add_middleware(DirectRoutes, state=state)
    if state.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
        )
        app.add_middleware(PlainErrorsAsProblems, wires=state.wires)  # for a preflight that it refuses
    app.add_middleware(RequestContext, service=state.service, metrics=state.metrics, log=state.request_log, wires=state.wires)
    if state.tracer is not None:
        app.add_middleware(TracedRequests, tracer=state.tracer, untraced=state.wires.health_paths | {metrics_route.PATH})


async def _start(service: Service, on_failure: Callable[[str], None]) -> None:
    try:
        await service.start(on_death=lambda: on_failure("the engine died"))
    except Exception as error:
        known = error if isinstance(error, StartError) else explain(error, "starting the service")
        if known is None:
            _log.critical("cannot start", reason=BUG, exc_info=True)
        else:
            _log.critical("cannot start", reason=str(known))
            _log.debug("cannot start", exc_info=True)
        on_failure("the model could not be loaded")

"""create_app: the service as an ASGI application. State lives in the lifespan; nothing is global."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import docs, health, metrics, model, predict
from app.api.middleware import LastResort, RequestContext
from app.api.payloads.images import BodyLimits
from app.api.problems import ProblemsOnly, install_problem_handlers, wire_problem_responses
from app.api.request_log import RequestLog
from app.auth.access import Access
from app.errors import StartError
from app.http.connections import Connections, HttpLimits
from app.http.protocol import HttpProtocol
from app.http.turns import Turns
from app.metrics import Metrics
from app.process.startup import BUG, explain
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.service import Service
from app.settings import Settings

_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    load: Callable[[Settings, Metrics], Classifier] = load_classifier,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> FastAPI:
    """Build the application. The model is loaded in the background once the server runs, so that probes are answered.

    Args:
        settings: all of the service's.
        load: makes the classifier.
        on_failure: called with the reason when the service cannot do its work, because the model could not be loaded or its
            engine died.

    Raises:
        StartError: the file of API keys cannot be used, or a limit has nothing to count by.
    """
    measured = Metrics()
    service = Service(settings, measured, load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = app.state.starting = asyncio.create_task(_start(service, on_failure))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait([starting])
            await service.close()
            app.state.request_log.close()

    app = FastAPI(
        title="vit-serve",
        summary="Classifies images with a trained Vision Transformer.",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=wire_problem_responses(),
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.service, app.state.metrics = settings, service, measured
    app.state.access = Access(settings, measured)
    app.state.turns = Turns()
    app.state.body_limits = BodyLimits(settings.max_image_bytes, settings.max_request_bytes, settings.max_images_per_request)
    app.state.limits = _http_limits(settings)
    app.state.connections = Connections(app.state.limits, measured, app.state.turns)
    app.state.http_protocol = partial(HttpProtocol, connections=app.state.connections)
    _add_routes(app, settings)
    install_problem_handlers(app)
    app.state.request_log = RequestLog()
    _add_middleware(app, settings, service, measured)
    return app


def _http_limits(settings: Settings) -> HttpLimits:
    return HttpLimits(
        max_connections=settings.max_connections,
        header_timeout_s=settings.header_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        decoders=settings.decode_workers,
    )


def _add_routes(app: FastAPI, settings: Settings) -> None:
    for router in (predict.router, model.router, health.router):
        app.include_router(router)
    if settings.docs:
        app.include_router(docs.router)
    if settings.metrics and settings.metrics_port is None:
        app.include_router(metrics.router)


def _add_middleware(app: FastAPI, settings: Settings, service: Service, measured: Metrics) -> None:
    """From the inside to the outside."""
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
        )
    app.add_middleware(ProblemsOnly)
    app.add_middleware(RequestContext, service=service, metrics=measured, log=app.state.request_log)


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

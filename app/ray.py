"""Replicas of the service by Ray Serve: `serve run app.ray:app replicas=2` (docs/ray.md)."""

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import StartError
from app.process.logs import configure_logging
from app.process.startup import explain
from app.settings import Settings, read_settings, unknown_variables

_LAST_ANSWERS_S = 5.0
_METRICS_PORTS = 100
"""Ports that replicas on one machine try, from VIT_METRICS_PORT on."""

_log = structlog.get_logger(__name__)


class Options(BaseModel):
    """Arguments of the application, as `serve run app.ray:app replicas=2` gives them."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(default=1, ge=1)
    """Replicas, or the least of them if `max_replicas` is given."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Most replicas: their number follows the requests in flight."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests in flight for each replica that autoscaling aims at. Default: four for each core."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    """Cores of a replica. Default: VIT_INFERENCE_THREADS, which is by default what this process may use."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica; 0.25 lets four share one."""


def app(options: Options) -> Any:
    """Return the application for Ray. Settings are read here, and sent to all replicas.

    Raises:
        StartError: a setting is invalid, or cannot work under Ray.
    """
    settings = read_settings()
    if settings.rate_limit_per_address is not None:
        raise StartError("VIT_RATE_LIMIT_PER_ADDRESS: replicas of Ray see no client's address; limit in front of them")
    for warning in unknown_variables(os.environ):
        _log.warning(warning)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        _log.warning("RAY_SERVE_ENABLE_HA_PROXY is not 1: images pass through a proxy in Python, 20 times slower")
    variables = {name: value for name, value in os.environ.items() if name.upper().startswith("VIT_")}
    cpus = options.cpus or settings.inference_threads
    cores = {"VIT_INFERENCE_THREADS": str(cpus), "VIT_DECODE_WORKERS": str(cpus)}
    return serve.deployment(serve.ingress()(VitServe), **_deployment(options, settings, cpus)).bind({**cores, **variables})


def _deployment(options: Options, settings: Settings, cpus: int) -> dict[str, Any]:
    # more than the service has slots for, so that it refuses first: with 429, and a measured Retry-After
    requests = max(settings.max_connections, 2 * settings.max_inflight_images)
    # Ray waits so long until every proxy knows that the replica leaves, and then for the requests in flight
    leaving_s = float(os.environ.get("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", 30))
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=options.target_ongoing_requests or 4 * cpus,
                upscale_delay_s=options.upscale_delay_s,
                downscale_delay_s=options.downscale_delay_s,
            )
        }
    return {
        **scale,
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": options.gpus},
        "max_ongoing_requests": requests,
        "max_queued_requests": requests,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=1),
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": leaving_s + settings.drain_timeout_s + _LAST_ANSWERS_S,
        "logging_config": LoggingConfig(enable_access_log=False),  # each request has a line of ours
    }


class VitServe:
    """One replica: the whole service, in a process of Ray.

    Args:
        variables: VIT_* variables of the process that started the application.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self._settings = read_settings()
        with redirect_stderr(sys.__stderr__):  # past Ray's, which keeps up to 1,000 lines back
            configure_logging(self._settings.log_level, self._settings.log_format)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # not where the application is described, which needs none of it
        from app.api.state import state_of
        from app.main import create_app
        from app.server import freeze

        self._load = _Load()
        app = create_app(self._settings, load=self._load, on_ready=freeze)
        app.add_middleware(OneRequestId)
        self._state = state_of(app)
        _serve_metrics(self._settings, self._state.metrics.registry)
        return app

    async def check_health(self) -> None:
        """Return once the service is ready, or on its way out. Ray counts no replica as running before the first return.

        Raises:
            StartError: the model could not be loaded, or its engine has died; Ray replaces the replica.
        """
        assert self._state.starting is not None
        await asyncio.wait([self._state.starting])
        if not self._state.service.draining and (reason := self._load.failure or self._state.service.why_not_ready):
            raise StartError(reason)


class _Load:
    """Loads models, and keeps the reason if that fails."""

    failure: str | None = None

    def __call__(self, *arguments: Any) -> Any:
        from app.serving.loading import load_classifier

        try:
            return load_classifier(*arguments)
        except Exception as error:
            self.failure = str(
                error if isinstance(error, StartError) else explain(error, "starting the service") or repr(error)
            )
            raise


def _serve_metrics(settings: Settings, registry: Any) -> None:
    """Serve the metrics of this replica on the first free port from VIT_METRICS_PORT on, if that is set."""
    from app.server import serve_metrics

    first = settings.metrics_port
    if not settings.metrics or first is None:
        return
    for port in range(first, first + (_METRICS_PORTS if first else 1)):
        try:
            return serve_metrics(settings.host, port, registry)
        except StartError as error:
            taken = error
    raise taken


class OneRequestId:
    """ASGI middleware: leaves out our `X-Request-ID` if it is the request's, since Ray adds that to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ids = [value for name, value in scope.get("headers", ()) if name == b"x-request-id"]

        async def send_one(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message["headers"] if not (each[0] == b"x-request-id" and each[1] in ids)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_one)

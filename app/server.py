"""Run the application under uvicorn, and stop it without losing an accepted request."""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from app.errors import StartError
from app.main import create_app
from app.metrics import Metrics
from app.process.signals import IGNORED, STOP, handled
from app.process.stderr import dropped_lines
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.service import Service
from app.settings import Settings

_FAILED = 1
_BACKLOG = 2048
"""Connections that the system keeps until they are accepted; uvicorn's own number."""
_FLUSH_S = 5
"""How long a stop waits for answers that are written but not yet read by their callers, in seconds."""

_log = structlog.get_logger(__name__)


def serve(settings: Settings, load: Callable[[Settings, Metrics], Classifier] = load_classifier) -> int:
    """Serve until a signal says to stop; returns the process's exit status.

    Args:
        settings: all of the service's.
        load: makes the classifier.

    Raises:
        StartError: something other than the model keeps the service from starting.
    """

    def load_and_freeze(settings: Settings, metrics: Metrics) -> Classifier:
        classifier = load(settings, metrics)
        gc.collect()
        gc.freeze()  # or each full collection looks at all that was imported, and for a quarter of a second nobody is heard
        return classifier

    app = create_app(settings, load=load_and_freeze, on_failure=lambda reason: server.give_up(reason))
    app.state.limits.check_descriptors()
    app.state.metrics.counter("vit_log_lines_dropped", "Lines of the log that could not be written.", dropped_lines)
    if settings.metrics and settings.metrics_port is not None:
        _serve_metrics(settings.host, settings.metrics_port, app.state.metrics.registry)
    server = DrainingServer(
        _config(app, settings), app.state.service, settings.drain_timeout_s, on_drain=app.state.connections.drain
    )
    try:
        server.run(_dual_stack_sockets(settings.host, settings.port))
    except SystemExit as ended:  # uvicorn could not listen, and has logged why; or a signal came before its handler did
        return _FAILED if ended.code else 0
    if server.failure is None:
        return 0
    _log.critical("ended", reason=server.failure)
    return _FAILED


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        http=app.state.http_protocol,
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),  # by default uvicorn believes whoever calls from this machine
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=_FLUSH_S,
    )


def _dual_stack_sockets(host: str, port: int) -> list[socket.socket] | None:
    """Open a socket for IPv6 and IPv4 if the host is `::`; return None for any other, which uvicorn opens itself.

    Raises:
        StartError: nothing can listen there.
    """
    if host != "::" or not socket.has_dualstack_ipv6():
        return None
    try:
        return [socket.create_server((host, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)]
    except OSError as error:
        raise StartError(f"VIT_HOST: cannot listen on {host}, port {port}: {error.strerror}") from error


def _serve_metrics(host: str, port: int, registry: CollectorRegistry) -> None:
    """Answer with the metrics on a port of their own, in threads that end with the process."""
    try:
        listening, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise StartError(f"VIT_METRICS_PORT: cannot listen on {host}, port {port}: {error.strerror}") from error
    _log.info("serving metrics", host=host, port=listening.server_port)


class DrainingServer(uvicorn.Server):
    """A server that on a signal to stop first lets the service drain, with the door open: probes and late callers are
    answered (not ready, 503) until the last accepted request is. A second signal refuses what still waits, a third cuts."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_timeout_s: float, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self.failure: str | None = None
        self._service = service
        self._on_drain = on_drain
        self._drain_timeout_s = drain_timeout_s
        self._stopping: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # called between two bytecodes of the main thread: leave everything else to the event loop
        self._loop.call_soon_threadsafe(self._on_signal)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals(), handled(STOP, self.handle_exit), handled(IGNORED, self._ignore_signal):
            yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets is not None:
            self._log_started_message(sockets)  # which uvicorn leaves to whoever made them

    def _ignore_signal(self, sig: int, frame: FrameType | None) -> None:
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(partial(_log.warning, "ignored a signal; SIGTERM stops the service", signal=name))

    def give_up(self, reason: str) -> None:
        """Stop because the service cannot do its work; whoever started the process is told by its status."""
        self.failure = reason
        self.should_exit = True

    def _on_signal(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain_and_exit())
        elif not self._hurried.is_set():
            _log.warning("second signal: refusing what still waits")
            self._hurried.set()
        else:
            self.force_exit = True

    async def _drain_and_exit(self) -> None:
        drain = asyncio.create_task(self._service.drain(self._drain_timeout_s))
        self._on_drain()
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not (drain.done() and drain.result()):
                await self._service.close()  # whoever still waits is told so, instead of being cut off
        finally:
            for task in (drain, hurried):
                task.cancel()
            self.should_exit = True

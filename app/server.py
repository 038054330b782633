"""Run the application under uvicorn, and stop it without losing an accepted request."""

import asyncio
import gc
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, start_http_server

from app.classifier import Classifier
from app.errors import StartError
from app.lifecycle import Service, load_classifier
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings

_FAILED = 1
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
    config = uvicorn.Config(
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
    if settings.metrics and settings.metrics_port is not None:
        _serve_metrics(settings.host, settings.metrics_port, app.state.metrics.registry)
    server = DrainingServer(config, app.state.service, settings.drain_timeout_s)
    try:
        server.run()
    except SystemExit as ended:  # uvicorn could not listen, and has logged why; or a signal came before its handler did
        return _FAILED if ended.code else 0
    if server.failure is None:
        return 0
    _log.critical("ended", reason=server.failure)
    return _FAILED


def _serve_metrics(host: str, port: int, registry: CollectorRegistry) -> None:
    """Answer with the metrics on a port of their own, in threads that end with the process."""
    try:
        listening, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise StartError(f"VIT_METRICS_PORT: cannot listen on {host}, port {port}: {error.strerror}") from error
    _log.info("serving metrics", host=host, port=listening.server_port)


class DrainingServer(uvicorn.Server):
    """A server that on SIGTERM or SIGINT first lets the service drain, with the door open: probes and late callers are
    answered (not ready, 503) until the last accepted request is. A second signal refuses what still waits, a third cuts."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_timeout_s: float) -> None:
        super().__init__(config)
        self.failure: str | None = None
        self._service = service
        self._drain_timeout_s = drain_timeout_s
        self._stopping: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # called between two bytecodes of the main thread: leave everything else to the event loop
        self._loop.call_soon_threadsafe(self._on_signal)

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # sockets are not used
        self._loop = asyncio.get_running_loop()
        await super().serve()

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
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not (drain.done() and drain.result()):
                await self._service.close()  # whoever still waits is told so, instead of being cut off
        finally:
            for task in (drain, hurried):
                task.cancel()
            self.should_exit = True

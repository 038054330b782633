"""The server process: the application under uvicorn, stopped without losing an accepted request."""

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from app.api.problems import internal_error
from app.api.state import state_of
from app.api.wire import Wires
from app.decoding.pool.select import make_decoder
from app.decoding.pool.zygote import Zygote
from app.errors import StartError
from app.http.connections import Connections, RawResponse
from app.http.limits import HttpLimits
from app.http.protocol import HttpProtocol
from app.main import create_app
from app.process.signals import IGNORED, RELOAD, STOP, handled
from app.process.stderr import dropped_lines
from app.serving.loading import load_classifier
from app.serving.model_loader import Load
from app.serving.service import Service
from app.settings import Settings

_FAILED = 1
_BACKLOG = 2048
"""Connections that the system queues until they are accepted; uvicorn's default."""
_FLUSH_S = 5
"""Seconds that a stop waits for clients to read responses that are written."""

_OTHER_DESCRIPTORS = 256
"""Files, pipes and libraries of the process, and connections that are being closed."""

_log = structlog.get_logger(__name__)


def serve(settings: Settings, load: Load = load_classifier, zygote: Zygote | None = None) -> int:
    """Serve until a signal stops the process. Returns its exit status.

    Args:
        settings: settings of the service.
        load: loads a model.
        zygote: process for decoders, if one was started before this module was imported.

    Raises:
        StartError: anything but the model keeps the service from starting.
    """
    failure = Failure()
    decoder = partial(make_decoder, zygote=zygote)
    app = create_app(settings, load=load, make_decoder=decoder, on_ready=freeze, on_failure=failure.report)
    state = state_of(app)
    limits = HttpLimits(
        settings.max_connections, header_timeout_s=settings.header_timeout_s, keep_alive_s=settings.keep_alive_s
    )
    allow_open_files(limits, settings.decode_workers)
    connections = Connections(
        limits,
        state.metrics,
        health_paths=state.wires.health_paths,
        server_error=partial(server_error, state.wires),
        slices=state.slices,
    )
    state.metrics.counter("vit_log_lines_dropped", "Lines of the log that could not be written.", dropped_lines)
    if settings.metrics and settings.metrics_port is not None:
        serve_metrics(settings.host, settings.metrics_port, state.metrics.registry)
    config = _config(app, settings, connections)
    server = DrainingServer(config, state.service, settings, connections.drain)
    failure.server = server
    try:
        server.run(_dual_stack_sockets(settings.host, settings.port))
    except SystemExit as ended:  # uvicorn could not listen, and has logged why; or a signal came before its handler did
        return _FAILED if ended.code else 0
    if failure.reason is None:
        return 0
    _log.critical("ended", reason=failure.reason)
    return _FAILED


def freeze() -> None:
    """Exclude what is loaded from garbage collection: a full one would stall the event loop for 250 ms."""
    gc.collect()
    gc.freeze()


def allow_open_files(limits: HttpLimits, decode_workers: int) -> None:
    """Raise the process's limit of open files to what connections and decoding workers need.

    Raises:
        StartError: the hard limit is lower.
    """
    # a decoding worker has a socket and shared memory
    needed = limits.max_connections + limits.reserve + 2 * decode_workers + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"VIT_MAX_CONNECTIONS: {limits.max_connections} connections need {needed} open files, and only {hard} are allowed"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _config(app: FastAPI, settings: Settings, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        http=partial(HttpProtocol, connections=connections),  # type: ignore[arg-type] # called like a class
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),  # by default uvicorn trusts every client on this machine
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=_FLUSH_S,
    )


def server_error(wires: Wires, path: str) -> RawResponse:
    """Return the response for an application that raised before it answered."""
    response = wires.render(path, internal_error(), {})
    return response.status_code, response.raw_headers, bytes(response.body)


def _dual_stack_sockets(host: str, port: int) -> list[socket.socket] | None:
    """Open a socket for IPv6 and IPv4 if the host is `::`. Returns None for other hosts, which uvicorn opens itself.

    Raises:
        StartError: the address cannot be listened on.
    """
    if host != "::" or not socket.has_dualstack_ipv6():
        return None
    try:
        return [socket.create_server((host, port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)]
    except OSError as error:
        raise StartError(f"VIT_HOST: cannot listen on {host}, port {port}: {error.strerror}") from error


def browser_address(host: str, port: int) -> str:
    """Return the address of the page for a browser on this machine, which cannot open one that stands for all interfaces."""
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> None:
    """Serve the metrics on their own port, in daemon threads.

    Raises:
        StartError: the port cannot be listened on.
    """
    try:
        listening, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise StartError(f"VIT_METRICS_PORT: cannot listen on {host}, port {port}: {error.strerror}") from error
    _log.info("serving metrics", host=host, port=listening.server_port)


@dataclass
class Failure:
    """Reason why the service cannot go on; it stops the server, if that runs already."""

    reason: str | None = None
    server: "DrainingServer | None" = None

    def report(self, reason: str) -> None:
        """Stop the server."""
        self.reason = reason
        if self.server is not None:
            self.server.should_exit = True


class DrainingServer(uvicorn.Server):
    """Server that drains the service on a signal to stop, while it goes on listening: probes and new requests are answered
    (not ready, 503) until the last accepted request is. Before the drain it may leave: not ready, and still accepting, until
    load balancers have noticed. A second signal refuses what still waits, a third one cuts."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        settings: Settings,
        on_drain: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._reread: asyncio.Task[None] | None = None
        self._service = service
        self._settings = settings
        self._on_drain = on_drain
        self._stopping: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # runs between two bytecodes of the main thread; the rest is for the event loop
        self._loop.call_soon_threadsafe(self._on_signal)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        reload = RELOAD if self._settings.models_file is not None else ()
        with (
            super().capture_signals(),
            handled(STOP, self.handle_exit),
            handled(IGNORED, self._ignore_signal),
            handled(reload, self._on_reload),
        ):
            yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets is not None:
            self._log_started_message(sockets)  # uvicorn does not for sockets it is given
        if self._settings.page and self.started and (listening := [each for server in self.servers for each in server.sockets]):
            _log.info("open the page in a browser", address=browser_address(*listening[0].getsockname()[:2]))

    def _ignore_signal(self, sig: int, frame: FrameType | None) -> None:
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(partial(_log.warning, "ignored a signal; SIGTERM stops the service", signal=name))

    def _on_reload(self, sig: int, frame: FrameType | None) -> None:
        def reread() -> None:
            self._reread = asyncio.create_task(self._service.models.reread_and_log(), name="read the models again")

        self._loop.call_soon_threadsafe(reread)

    def _on_signal(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain_and_exit())
        elif not self._hurried.is_set():
            _log.warning("second signal: refusing what still waits")
            self._hurried.set()
        else:
            self.force_exit = True

    async def _drain_and_exit(self) -> None:
        hurried = asyncio.create_task(self._hurried.wait())
        if self._settings.drain_delay_s:
            self._service.leave()
            await asyncio.wait((hurried,), timeout=self._settings.drain_delay_s)
        drain = asyncio.create_task(self._service.drain(self._settings.drain_timeout_s))
        self._on_drain()
        try:
            await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not (drain.done() and drain.result()):
                await self._service.close()  # requests that still wait get an answer instead of a cut connection
        finally:
            for task in (drain, hurried):
                task.cancel()
            self.should_exit = True

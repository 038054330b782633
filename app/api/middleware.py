"""Middleware: id, timing, log line and count of every request; unexpected errors; HEAD."""

import asyncio
import os
import re
import time
from functools import lru_cache
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import framework_problem, internal_error, problem_headers, problem_of, render_unread
from app.api.request_log import RequestLog
from app.api.wire import Wires
from app.errors import ServiceError
from app.metrics import Metrics
from app.serving.results import Timings
from app.serving.service import Service

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499
"""Status of nginx for a client that left before the response; only in logs and metrics."""

_SERIES = 256
"""Series of a metric that are found quickly; there are a few for each route."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_COMMON_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

_log = structlog.get_logger(__name__)


class RequestContext:
    """ASGI middleware around the whole app.

    Adds `X-Request-ID`, `Server-Timing`, `Cache-Control` and `X-Content-Type-Options` to every response, and
    `Connection: close` once the service stops; counts, times and logs every request.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics, log: RequestLog, wires: Wires) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._requests = lru_cache(_SERIES)(metrics.requests.labels)
        self._request_seconds = lru_cache(_SERIES)(metrics.request_seconds.labels)
        self._log = log
        self._wires = wires

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["arrival"] = asyncio.get_running_loop().time()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = _server_timing(state.get("timings"), time.perf_counter() - started)
                added = ((b"x-request-id", request_id.encode()), (b"server-timing", timing.encode()))
                message["headers"] = [*message["headers"], *_COMMON_HEADERS, *added]
                if self._service.stopping:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_headers)
            except ClientDisconnect:
                status = _CLIENT_GONE
            finally:
                self._record(scope, status or _CLIENT_GONE, time.perf_counter() - started, state)

    def _record(self, scope: Scope, status: int, total_s: float, state: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        protocol = state.get("protocol") or self._wires.protocol(scope["path"])
        self._requests(method, route, str(status), protocol).inc()
        self._request_seconds(method, route).observe(total_s)
        code = state.get("problem_code")
        if code is not None and scope["path"] not in self._wires.health_paths:  # a probe that waits is no refused client
            self._metrics.problems.labels(code).inc()
        self._log.write(method, route, status, code, _milliseconds(state.get("timings"), total_s))


class UnhandledErrors:
    """ASGI middleware around the routes: answers requests that `HttpProtocol` refused, and unexpected errors with a 500.

    It is inside all other middleware, so that these answers too get the headers that the others add (CORS).
    """

    def __init__(self, app: ASGIApp, wires: Wires) -> None:
        self._app = app
        self._wires = wires

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = scope.get("refusal")
        if isinstance(refusal, ServiceError):
            render = self._wires.at(scope["path"]).render if scope["path"] else render_unread
            response = render(problem_of(refusal), problem_headers(refusal))
            await response(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if refusal is not None:
                raise refusal
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            raise
        except Exception:
            _log.exception("unexpected error")
            if started:  # half a response is out; the server has to cut the connection
                raise
            await self._wires.render(scope["path"], internal_error(), {})(scope, receive, send)


class HeadAsGet:
    """ASGI middleware: answers HEAD as GET without the body, and says so in `Allow`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("allow") == "GET":
                    headers["Allow"] = "GET, HEAD"
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"} if is_head else scope  # a copy: the server leaves the body out by its own scope
        try:
            await self._app(inner, receive, send_headers)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]  # for the log


class PlainErrorsAsProblems:
    """ASGI middleware: renders as a problem what the framework answers in plain text by itself.

    Starlette does so where no exception handler is reached: a refused preflight, and a `Range` that it cannot serve.
    """

    def __init__(self, app: ASGIApp, wires: Wires) -> None:
        self._app = app
        self._wires = wires

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers, text = 0, Headers(), b""

        async def send_problem(message: Message) -> None:
            nonlocal status, headers, text
            if message["type"] == "http.response.start" and _is_plain_error(message):
                status, headers = message["status"], Headers(raw=message["headers"])
            elif not status:
                await send(message)
            elif message["type"] == "http.response.body":
                text += message.get("body", b"")
                if not message.get("more_body", False):
                    kept = {name: value for name, value in headers.items() if name not in ("content-length", "content-type")}
                    problem = framework_problem(status, text.decode())
                    await self._wires.render(scope["path"], problem, kept)(scope, receive, send)

        await self._app(scope, receive, send_problem)


def _is_plain_error(start: Message) -> bool:
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def _request_id(scope: Scope) -> str:
    """Return the client's id if it is fit for a header and a log line, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            sent = value.decode("latin-1")
            return sent if _SANE_REQUEST_ID.fullmatch(sent) else _new_id()
    return _new_id()


def _new_id() -> str:
    return os.urandom(16).hex()


def _server_timing(timings: Timings | None, total_s: float) -> str:
    """Return durations in milliseconds (https://www.w3.org/TR/server-timing/)."""
    return ", ".join([f"{name[:-3]};dur={value}" for name, value in _milliseconds(timings, total_s).items()])


def _milliseconds(timings: Timings | None, total_s: float) -> dict[str, float]:
    total_ms = round(total_s * 1000, 2)
    if timings is None:
        return {"total_ms": total_ms}
    return {
        "decode_wait_ms": round(timings.decode_wait_s * 1000, 2),
        "decode_ms": round(timings.decode_s * 1000, 2),
        "queue_ms": round(timings.queue_s * 1000, 2),
        "inference_ms": round(timings.inference_s * 1000, 2),
        "total_ms": total_ms,
    }

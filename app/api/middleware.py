"""RequestContext: what every request gets, whatever its route: an id, its times, a log line, a count, and an answer."""

import asyncio
import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import last_resort, problem_response
from app.api.request_log import RequestLog
from app.errors import ServiceError
from app.metrics import Metrics
from app.serving.results import Timings
from app.serving.service import Service

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499
"""Nginx' status for a caller that left before the answer; only in logs and metrics, nobody is there to read it."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_ON_EVERY_ANSWER = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

_log = structlog.get_logger(__name__)


class RequestContext:
    """ASGI middleware around the whole app.

    Adds `X-Request-ID`, `Server-Timing` and what keeps browsers and caches from misusing an answer to every one, and
    `Connection: close` while the service drains; counts, times and logs every request.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics, log: RequestLog) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._log = log

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
                headers = MutableHeaders(scope=message)
                headers.raw.extend(_ON_EVERY_ANSWER)
                headers["X-Request-ID"] = request_id
                headers["Server-Timing"] = _server_timing(state.get("timings"), time.perf_counter() - started)
                if self._service.draining:
                    headers["Connection"] = "close"
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
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(total_s)
        self._log.write(method, route, status, state.get("problem_code"), _milliseconds(state.get("timings"), total_s))


class LastResort:
    """ASGI middleware next to the routes: answers what `HttpProtocol` refused, and what nobody else caught with a 500 that
    tells nothing. Inside all other middleware, so that these answers too get what that adds (CORS)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = scope.get("refusal")
        if isinstance(refusal, ServiceError):
            await problem_response(refusal)(scope, receive, send)
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
            if started:  # half an answer is out; the server has to cut the connection
                raise
            await last_resort()(scope, receive, send)


def _request_id(scope: Scope) -> str:
    """The caller's id, if it is one that can stand in a header and a log line; else a new one."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _SANE_REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _server_timing(timings: Timings | None, total_s: float) -> str:
    """https://www.w3.org/TR/server-timing/: durations in milliseconds."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in _milliseconds(timings, total_s).items())


def _milliseconds(timings: Timings | None, total_s: float) -> dict[str, float]:
    steps = {"total_ms": total_s}
    if timings is not None:
        steps = {
            "decode_ms": timings.decode_s,
            "queue_ms": timings.queue_s,
            "inference_ms": timings.inference_s,
            **steps,
        }
    return {name: round(seconds * 1000, 2) for name, seconds in steps.items()}

"""TracedRequests: a span for each request, with the attributes of OpenTelemetry's conventions for HTTP servers."""

from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.tracing.images import recorded_images

if TYPE_CHECKING:  # imports OpenTelemetry's SDK, an extra
    from app.tracing.spans import Tracer

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_MAX_TEXT = 256
"""Characters of an attribute that a client chooses."""


class TracedRequests:
    """ASGI middleware around the whole app, where traces are asked for.

    Args:
        app: the application.
        tracer: makes the spans.
        untraced: paths without spans, such as those of health probes.
    """

    def __init__(self, app: ASGIApp, tracer: "Tracer", untraced: Set[str]) -> None:
        self._app = app
        self._tracer = tracer
        self._untraced = untraced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._untraced:
            await self._app(scope, receive, send)
            return
        headers = _joined(scope["headers"])
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.request(method, headers, _at_start(scope, method, headers.get("host", "")))
        status: int | None = None

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        broken = True
        try:
            with structlog.contextvars.bound_contextvars(**span.ids), recorded_images(span.image):
                await self._app(scope, receive, watched_send)
            broken = False
        finally:
            route = getattr(scope.get("route"), "path", None)
            failed = broken or (status is not None and status >= 500)
            name = method if method != "_OTHER" else "HTTP"
            span.end(f"{name} {route}" if route else name, _at_end(scope, route, status, failed=failed), failed=failed)


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; `tracestate` may come in several lines."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _at_start(scope: Scope, method: str, host: str) -> dict[str, str | int]:
    """Return the attributes that are known before the request is read; no query, which may hold a key."""
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.scheme": scope["scheme"],
        "url.path": scope["path"][:_MAX_TEXT],
    }
    try:
        address = urlsplit(f"//{host}")
        name, port = address.hostname, address.port
    except ValueError:
        name, port = None, None
    if name:
        attributes["server.address"] = name[:_MAX_TEXT]
    if name and port:
        attributes["server.port"] = port
    return attributes


def _at_end(scope: Scope, route: str | None, status: int | None, *, failed: bool) -> dict[str, str | int]:
    """Return the attributes that are known when the request has ended."""
    state: dict[str, Any] = scope.get("state", {})
    code: str | None = state.get("problem_code")
    attributes: dict[str, str | int] = {}
    if route is not None:
        attributes["http.route"] = route
    if status is not None:
        attributes["http.response.status_code"] = status
    if code is not None:
        attributes["vit.problem_code"] = code
    if failed:
        attributes["error.type"] = code or str(status or "incomplete_response")
    elif status is None:
        attributes["error.type"] = "client_disconnected"
    return attributes

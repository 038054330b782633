"""Adapter to uvicorn: its private classes, adapted to a connection with limits. No other file imports them."""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http.connections import RawResponse

__all__ = ["Connection", "Exchange", "Flow", "HTTPScope"]

_WORTH_READING_BYTES = 256 * 1024
"""Unread rest of a body that is read and dropped to keep its connection; a new one costs more than that."""


class Flow(FlowControl):
    """Flow control that can also be held, whatever the application asks for.

    A transport that is never paused reads up to 32 chunks of 256 KB in one iteration of the event loop.
    """

    _held = False

    @property
    def paused(self) -> bool:
        """True while the socket is not read."""
        return self._held or self.read_paused

    def hold(self) -> None:
        """Stop reading until `release`."""
        if not (self.paused or self._transport.is_closing()):
            self._transport.pause_reading()
        self._held = True

    def release(self) -> None:
        """Read again, unless the application has paused reading."""
        self._held = False
        if not (self.read_paused or self._transport.is_closing()):
            self._transport.resume_reading()

    def pause_reading(self) -> None:
        if not self.paused:
            self._transport.pause_reading()
        self.read_paused = True

    def resume_reading(self) -> None:
        if self.read_paused and not self._held:
            self._transport.resume_reading()
        self.read_paused = False


class Exchange(RequestResponseCycle):
    """A request and its response. Reading the request raises after `fail`."""

    failure: BaseException | None = None
    unread_bytes = math.inf
    """Bytes of the body still to come, by its Content-Length."""
    server_error: Callable[[str], RawResponse]
    """Response for an application that raised before it answered, by path."""

    def fail(self, error: BaseException) -> None:
        """Raise the error where the application reads the rest of the request."""
        self.failure = error
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self.failure is not None and not self.disconnected:
            self.message_event.set()  # for the next call
            raise self.failure
        return message

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start" and self.more_body:
            # keep the connection only if the unread body is small enough to drain and no client waits for 100 Continue
            self.keep_alive &= self.unread_bytes <= _WORTH_READING_BYTES and not self.waiting_for_100_continue
        await super().send(message)

    async def send_500_response(self) -> None:
        status, headers, body = self.server_error(self.scope["path"])
        headers = [*headers, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class Connection(HttpToolsProtocol):
    """uvicorn's connection: runs exchanges one after another. Parsing, limits and closing are left to `HttpProtocol`."""

    cycle: Exchange
    flow: Flow

    running: RequestResponseCycle | None = None
    """Exchange in flight; `cycle` is the last one that arrived."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.flow = Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    @property
    def used(self) -> bool:
        """True after the first request."""
        return self.cycle is not None

    @property
    def answered(self) -> bool:
        """True unless a request is in flight."""
        return self.cycle is None or self.cycle.response_complete

    def new_scope(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Set `scope` to that of a new request with these headers."""
        self.on_message_begin()
        self.headers = self.scope["headers"] = headers

    def begin(self, scope: HTTPScope, *, keep_alive: bool, server_error: Callable[[str], RawResponse]) -> None:
        """Run the request, or queue it behind the one before. The exchange ends the connection through this object."""
        answered = self.answered
        self.cycle = Exchange(
            scope=scope,
            transport=cast(asyncio.Transport, self),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        self.cycle.server_error = server_error
        if answered:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        self.schedule(cycle.scope["path"], partial(super()._start_asgi_task, cycle, app))

    def schedule(self, path: str, start: Callable[[], None]) -> None:
        """Start a request now or soon."""
        start()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the watch over pace does it

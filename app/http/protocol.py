"""HttpProtocol: one HTTP/1.1 connection, with limits on size, number and pace.

Requests that the parser or a limit refuses reach the application as `scope["refusal"]`, in their place among the requests of
the connection: they are answered, logged and counted like any other.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

import structlog

from app.errors import RequestTooSlow, ServiceError, TooManyConnections
from app.http.addresses import unmapped
from app.http.closing import ClosableConnection, State
from app.http.connections import Connections
from app.http.pace import ReadingPace, SendingPace
from app.http.parser import Head, RequestParser, StopParsing
from app.http.time_slices import Steps
from app.http.uvicorn_adapter import HTTPScope

_RETRY_AFTER_S = 1.0

_STEP_BYTES = 32 * 1024
"""Bytes parsed in one step; takes less than a millisecond if every byte is a chunk."""

_log = structlog.get_logger(__name__)


class HttpProtocol(ClosableConnection):
    """One connection. `Connections` calls `inspect` regularly."""

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, connections=connections, **options)
        self._limits = connections.limits
        self._admitted = True  # False on a connection of the reserve
        self._sending = SendingPace(self._limits, self.loop.time())
        self._reading = ReadingPace(self._limits)
        self._request_parser = RequestParser(self._limits, self)
        self._parsing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        if self.client is not None and ":" in self.client[0]:
            self.client = str(unmapped(self.client[0])), self.client[1]  # as `VIT_TRUSTED_PROXIES` names it
        if self.all.full():
            self.all.count("dropped")
            transport.abort()
        else:
            self._admitted = self.all.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        if self._parsing is not None:
            self._parsing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.state is State.IDLE and self.used and not self._request_parser.has_begun:
            self._sending.restart(self.loop.time())
        steps = self._parse(data)
        if not self.all.slices.start(steps):
            self.flow.hold()
            self._parsing = self.loop.create_task(self._parse_rest(steps))

    async def _parse_rest(self, steps: Steps[None]) -> None:
        await self.all.slices.work(steps)
        self.flow.release()

    def _parse(self, data: bytes) -> Steps[None]:
        for start in range(0, len(data), _STEP_BYTES):
            if self.state.discards():
                self.discard(len(data) - start)
                return
            try:
                self._request_parser.feed(data[start : start + _STEP_BYTES])
            except Exception as error:
                if not (self.state.discards() and isinstance(error, ServiceError)):
                    self._refuse(error)
            yield

    # events of the parser

    def request_begun(self) -> None:
        if len(self.pipeline) >= self._limits.max_pipelined:
            self.cycle.keep_alive = False
            self.state, self.has_unread_input = State.DISCARDING, True
            raise StopParsing
        self.new_scope(self._request_parser.headers)
        self.state = State.HEAD
        if self.used:
            self._sending.restart(self.loop.time())

    def head_complete(self, head: Head) -> None:
        # no route reads cookies, and FastAPI would parse them for every request
        self.headers[:] = [header for header in self.headers if header[0] != b"cookie"]
        expects_continue = (b"expect", b"100-continue") in ((name, value.lower()) for name, value in self.headers)
        self.expect_100_continue = expects_continue and head.version != "1.0"  # RFC 9110, 10.1.1
        self.scope["method"], self.scope["http_version"] = head.method, head.version
        self.scope["path"] = self.root_path + head.target.path
        self.scope["raw_path"] = self.root_path.encode() + head.target.raw_path
        self.scope["query_string"] = head.target.query
        if not self._admitted and head.target.path not in self.all.health_paths:
            raise TooManyConnections("All connections are busy; try again soon.", _RETRY_AFTER_S)
        self._sending.restart(self.loop.time())
        self._begin(self.scope, keep_alive=self._admitted and head.keep_alive)
        self.state = State.BODY
        self.cycle.unread_bytes = math.inf if head.body_bytes is None else head.body_bytes

    def body_received(self, body: bytes) -> None:
        self._sending.body_bytes += len(body)
        self.cycle.unread_bytes -= len(body)
        self.on_body(body)

    def request_complete(self) -> None:
        self.state = State.IDLE if self.cycle.keep_alive else State.DISCARDING
        if self.cycle.response_complete:
            self._sending.restart(self.loop.time())  # answered before its end; idle from now on
        self.on_message_complete()

    # requests and refusals

    def schedule(self, path: str, start: Callable[[], None]) -> None:
        """Start a health probe at once, and any other request when the event loop has room."""
        if path in self.all.health_paths:
            start()
        else:
            self.all.starts.add(start)

    def _begin(self, scope: HTTPScope, *, keep_alive: bool) -> None:
        self.all.mark_busy(self)
        self.begin(scope, keep_alive=keep_alive, server_error=self.all.server_error)

    def _refuse(self, error: BaseException) -> None:
        """Stop parsing; answer in the request's place, or fail the request whose body this is.

        An error that is no ServiceError is a bug of ours; the application answers it with a 500.
        """
        state, self.state, self.has_unread_input = self.state, State.DISCARDING, True
        self.all.count(error.code if isinstance(error, ServiceError) else "internal_error")
        if state is State.BODY and self.cycle.response_complete:
            if not isinstance(error, ServiceError):
                _log.error("unexpected error", exc_info=error)
            self.transport.close()
        elif state is State.BODY:
            self.cycle.keep_alive = False
            self.cycle.fail(error)
        else:
            if state is not State.HEAD:
                self.new_scope([])  # an empty request to refuse
            self.expect_100_continue = False
            path, raw_path = self.scope.get("path", ""), self.scope.get("raw_path", b"")  # unknown until the head is complete
            refused = {**self.scope, "method": "", "path": path, "raw_path": raw_path, "query_string": b"", "refusal": error}
            self._begin(cast(HTTPScope, refused), keep_alive=False)

    def on_response_complete(self) -> None:
        closing = self.state.closes()
        if closing:
            self.pipeline.clear()
        super().on_response_complete()
        if not closing and self.cycle.response_complete:
            self._sending.restart(self.loop.time())
            self.all.mark_idle(self)

    # called by `Connections`

    def inspect(self, now: float) -> None:
        """Close or refuse a peer that is too slow."""
        if self._reading.is_too_slow(now, self.written_bytes, self.transport.get_write_buffer_size()):
            self.all.count("slow_reader")
            self.transport.abort()
        if self.is_closing():
            super().inspect(now)
        elif self.state is State.DISCARDING or self.flow.paused:
            return  # input is held up by the server itself
        elif self.state is State.BODY:
            if self._sending.is_body_too_slow(now):
                self._refuse(RequestTooSlow("The request's body comes too slowly."))
        elif self.answered:
            self._inspect_idle(self._sending.waited_s(now))

    def _inspect_idle(self, waited_s: float) -> None:
        header_begun = self.state is State.HEAD or self._request_parser.has_begun
        if self.used and not header_begun:
            if waited_s >= self.all.keep_alive_s:
                self.transport.close()
        elif waited_s >= self._limits.header_timeout_s:
            if header_begun:
                self._refuse(RequestTooSlow("The request's header did not come in time."))
            else:
                self.all.count("silent")
                self.transport.close()

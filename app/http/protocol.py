"""HttpProtocol: uvicorn's HTTP/1.1 on httptools, with every limit that it lacks.

What the parser or a limit refuses is handed to the application as a request that is refused already (`scope["refusal"]`), in
its place among those of its connection: so it is answered, logged, counted and given its headers like any other.
"""

import asyncio
import math
import re
import urllib.parse
from functools import partial
from typing import Any, cast

import httptools
import structlog
from uvicorn import Config
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.api.problems import INTERNAL_ERROR, last_resort
from app.auth.client_address import unmapped
from app.errors import HeaderTooLarge, MalformedRequest, RequestTooSlow, ServiceError, TooManyConnections, UrlTooLong
from app.http.connections import Connections
from app.http.flow import Flow
from app.http.numbers import whole_number
from app.http.turns import Steps

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
"""What RFC 9110, 7.2 allows in one, more or less; nothing is ever decided by it."""

_FRAMING_PER_BYTE = 16
"""Bytes of chunk sizes and extensions that a byte of a body may bring along; a chunk for each byte needs 5."""

_REQUEST_LINE_BYTES = 32
"""What a method, a version, spaces and line ends take, at the most."""

_WORTH_READING_BYTES = 256 * 1024
"""What is read of a body that nobody wants any more, so that its connection can stay: a new one costs more than this."""

_RETRY_AFTER_S = 1.0

_HEALTH = frozenset({"/health/live", "/health/ready"})
"""Paths that are answered on any connection, and first."""

_STEP_BYTES = 32 * 1024
"""Parsed at once; takes less than a millisecond if every byte is a chunk."""

_MAX_QUERY_PARAMETERS = 100
"""Far more than any route knows; each costs the event loop more time than its bytes do."""

_log = structlog.get_logger(__name__)


class _Stop(Exception):
    """Ends the parser's work from inside one of its callbacks."""


class _Exchange(RequestResponseCycle):
    """A request and its answer. Fails while it is read if the rest of its body cannot be."""

    failure: BaseException | None = None
    unread_bytes = math.inf
    """Of its body, as far as the header tells."""

    def fail(self, error: BaseException) -> None:
        self.failure = error
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if self.failure is not None and not self.disconnected:
            self.message_event.set()  # for whoever asks again
            raise self.failure
        return message

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start" and self.more_body:
            # what is left of the body is nobody's request; who was not told to go on may not send it at all
            self.keep_alive &= self.unread_bytes <= _WORTH_READING_BYTES and not self.waiting_for_100_continue
        await super().send(message)

    async def send_500_response(self) -> None:
        """Answer for an application that raised before it answered, in our words; uvicorn's are plain text."""
        response = last_resort()
        headers = [*response.raw_headers, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self.send({"type": "http.response.body", "body": bytes(response.body), "more_body": False})


class HttpProtocol(HttpToolsProtocol):
    """One connection. Knows at any time what it waits for and since when; `Connections` asks it regularly.

    A chunk of data is parsed at once, as far as it goes. After a fault, a `Connection: close`, or too many requests on end,
    it is deaf: nothing that comes later is ever parsed, let alone run.
    """

    cycle: _Exchange
    flow: Flow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = connections
        self._limits = connections.limits
        self._regular = True
        self._running: RequestResponseCycle | None = None  # `cycle` is the last one that came
        self._since = self.loop.time()
        self._in_head = self._in_body = self._upgrading = False
        self._framing = 0  # bytes that came since the last whole request and are neither its header nor its body
        self._header_bytes = self._body_bytes = 0
        self._parsing: asyncio.Task[None] | None = None
        self._body: list[bytes] = []  # that the parser has found, in the pieces in which it was sent
        self._deaf = self._unread = self._ending = False
        self._linger_until = float("inf")
        self._linger_bytes = self._limits.linger_bytes
        self._written = 0
        self._stall: tuple[float, int] | None = None
        self._renew_parser()

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.flow = Flow(transport)
        if self.client is not None and ":" in self.client[0]:
            self.client = str(unmapped(self.client[0])), self.client[1]  # as `VIT_TRUSTED_PROXIES` names it
        if self._all.full():
            self._all.count("dropped")
            transport.abort()
        else:
            self._regular = self._all.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        if self._parsing is not None:
            self._parsing.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._deaf and self.cycle is not None and not (self._in_head or self._in_body or self._framing):
            self._since = self.loop.time()  # the next request begins
        steps = self._parse(data)
        if not self._all.turns.start(steps):
            self.flow.hold()
            self._parsing = self.loop.create_task(self._parse_rest(steps))

    async def _parse_rest(self, steps: Steps[None]) -> None:
        await self._all.turns.work(steps)
        self.flow.release()

    def _parse(self, data: bytes) -> Steps[None]:
        for start in range(0, len(data), _STEP_BYTES):
            if self._deaf:
                self._throw_away(len(data) - start)
                return
            self._feed(data[start : start + _STEP_BYTES])
            yield

    def _feed(self, data: bytes) -> None:
        self._framing += len(data)
        try:
            try:
                self.parser.feed_data(data)
            finally:
                self._deliver_body()
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except Exception as error:
            fault = self._fault_of(error)
            if fault is not None:
                self._refuse(fault)
        else:
            if self._framing > self._limits.max_header_bytes + self._limits.max_url_bytes:
                self._refuse(
                    MalformedRequest("The body's chunks are mostly not body.") if self._in_body else self._header_too_large()
                )

    def _fault_of(self, error: Exception) -> BaseException | None:
        """Return the error that stopped the parser: a refusal, or a fault of our own. None if it needs no answer."""
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__ or error
            return None if isinstance(cause, _Stop) else cause
        if isinstance(error, httptools.HttpParserError):
            return None if self._deaf else MalformedRequest("The request is not valid HTTP/1.1.")
        return error

    def _throw_away(self, size: int) -> None:
        self._unread = True
        self.flow.hold()
        self.loop.call_soon(self.flow.release)
        if self._ending:
            self._linger_bytes -= size
            if self._linger_bytes < 0:
                self.transport.close()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its `Upgrade`, which may be ignored (RFC 9110, 7.8) and is: the parser would take
        what follows the header for another protocol, and a body after it for the next request."""
        self._upgrading = self._in_head = False
        self._framing = 0
        head = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self._renew_parser()
        self._feed(b"".join([*head, b"\r\n", rest]))

    # what the parser finds

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.max_pipelined:
            self.cycle.keep_alive = False
            self._deaf = self._unread = True
            raise _Stop
        super().on_message_begin()
        self._in_head, self._header_bytes = True, 0
        if self.cycle is not None:
            self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_url_bytes:
            raise UrlTooLong(f"The URL is longer than {self._limits.max_url_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer must not pass for a header (RFC 9110, 6.5.1)
        self._header_bytes += len(name) + len(value) + 4
        super().on_header(name, value.strip(b" \t"))  # RFC 9110, 5.5: blanks around a value are not part of it
        if self._header_bytes > self._limits.max_header_bytes or len(self.headers) > self._limits.max_header_fields:
            raise self._header_too_large()

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        length = self._check_framing(method, version)
        if self.parser.should_upgrade():
            self._upgrading = True
            return
        # no route wants cookies, and FastAPI would parse them for every request
        self.headers[:] = [header for header in self.headers if header[0] != b"cookie"]
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.expect_100_continue &= version != "1.0"  # RFC 9110, 10.1.1
        path = self._set_path()
        if not self._regular and path not in _HEALTH:
            raise TooManyConnections("All connections are busy; try again soon.", _RETRY_AFTER_S)
        self._framing = max(0, self._framing - len(self.url) - self._header_bytes - _REQUEST_LINE_BYTES)
        self._since, self._body_bytes = self.loop.time(), 0
        self._begin(self.scope, keep_alive=self._regular and version != "1.0" and self.parser.should_keep_alive())
        self._in_head, self._in_body = False, True
        self.cycle.unread_bytes = math.inf if length is None else length

    def _check_framing(self, method: bytes, version: str) -> int | None:
        """Return the declared length of the body, or None.

        Refuse what the parser lets pass and two readers could read in two ways (RFC 9112, 3.2, 6.1 and 6.2)."""
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version not in ("1.0", "1.1") or method == b"CONNECT":
            raise MalformedRequest("The request is not one of HTTP/1.1 to an origin server.")
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            raise MalformedRequest("The request needs one valid Host.")
        if codings and (version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise MalformedRequest("The only Transfer-Encoding that is taken is `chunked`.")
        declared = next((value for name, value in self.headers if name == b"content-length"), None)
        length = None if declared is None else whole_number(declared)
        if declared is not None and length is None:
            raise MalformedRequest("The Content-Length is not a number of at most 19 digits.")
        return length

    def _set_path(self) -> str:
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            raise MalformedRequest("The request's target is not a path.") from None
        raw_path, query = url.path or b"", url.query or b""
        if not (raw_path and raw_path.isascii()):
            raise MalformedRequest("The request's target is not a path.")
        if query.count(b"&") >= _MAX_QUERY_PARAMETERS:
            raise MalformedRequest(f"The query has more than {_MAX_QUERY_PARAMETERS} parameters.")
        path = urllib.parse.unquote(raw_path.decode("ascii"))
        self.scope["path"], self.scope["raw_path"] = self.root_path + path, self.root_path.encode() + raw_path
        self.scope["query_string"] = query
        return path

    def on_body(self, body: bytes) -> None:
        self._body.append(body)  # and no more: a chunk may be one byte, and thousands of them come at once

    def _deliver_body(self) -> None:
        """Hand on what the parser has found of the body since the last time."""
        if not self._body:
            return
        body = b"".join(self._body)
        self._body.clear()
        self._framing = max(0, self._framing - _FRAMING_PER_BYTE * len(body))
        self._body_bytes += len(body)
        self.cycle.unread_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._deliver_body()
        self._in_body, self._framing = False, 0
        if not self.cycle.keep_alive:
            self._deaf = True
        if self.cycle.response_complete:
            self._since = self.loop.time()  # answered before its end; idle from now on
        super().on_message_complete()

    # requests and refusals

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        begin = partial(super()._start_asgi_task, cycle, app)
        if cycle.scope["path"] in _HEALTH:
            begin()  # ahead of any crowd
        else:
            self._all.starts.add(begin)

    def _begin(self, scope: HTTPScope, keep_alive: bool) -> None:
        """Run the request, or queue it behind the one before."""
        previous = self.cycle
        self.cycle = _Exchange(
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
        self._all.busy(self)
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _refuse(self, error: BaseException) -> None:
        """Answer in the request's place, or let the request whose body this is fail; and hear no more.

        An error that is no ServiceError is a fault of ours; the application answers it like any other."""
        self._deaf = self._unread = True
        self._all.count(error.code if isinstance(error, ServiceError) else INTERNAL_ERROR)
        if self._in_body and self.cycle.response_complete:
            if not isinstance(error, ServiceError):
                _log.error("unexpected error", exc_info=error)
            self.transport.close()  # it has its answer
            return
        if self._in_body:
            self.cycle.keep_alive = False  # nothing more of it is heard
            self.cycle.fail(error)
            return
        if not self._in_head:
            super().on_message_begin()  # an empty request, so that there is something to refuse
        self.expect_100_continue = False
        refused = {**self.scope, "method": "", "path": "/", "raw_path": b"/", "query_string": b"", "refusal": error}
        self._begin(cast(HTTPScope, refused), keep_alive=False)

    def _header_too_large(self) -> HeaderTooLarge:
        fields, size = self._limits.max_header_fields, self._limits.max_header_bytes
        return HeaderTooLarge(f"The header has more than {fields} fields, or more than {size} bytes.")

    def on_response_complete(self) -> None:
        if self._ending:
            self.pipeline.clear()
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's timer; `inspect` does it
        if not self._ending and self.cycle.response_complete:
            self._since = self.loop.time()
            self._all.at_rest(self)

    # what an exchange needs of its transport: it ends the connection through these

    def write(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._written += len(data)
        self.transport.write(data)

    def is_closing(self) -> bool:
        return self._ending or self.transport.is_closing()

    def close(self) -> None:
        """Close once the answer is out. If the peer is not done sending, wait for it a little: the reset with which the
        system answers unread data takes the answer from a peer that has not read it yet."""
        if self.is_closing():
            return
        self._ending = True
        if not (self._unread or self.pipeline or self.cycle.more_body):
            self.transport.close()
            return
        self._deaf = True
        self._linger_until = self.loop.time() + self._limits.linger_s
        self._all.at_rest(self)
        self.transport.write_eof()
        self.flow.resume_reading()

    # what `Connections` asks

    def evict(self) -> None:
        """See `Connection`. A peer that does not read its answer would keep what is only closed."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def inspect(self, now: float) -> None:
        self._inspect_reader(now)
        if self.is_closing():
            if now >= self._linger_until:
                self.transport.close()
        elif self._deaf or self.flow.paused:
            return  # what does not come is our doing
        elif self._in_body:
            owed = (now - self._since - self._limits.body_grace_s) * self._limits.min_body_rate
            if self._body_bytes < owed:
                self._refuse(RequestTooSlow("The request's body comes too slowly."))
        elif self.cycle is None or self.cycle.response_complete:
            self._inspect_idle(now - self._since)

    def _inspect_idle(self, waited_s: float) -> None:
        if self.cycle is not None and not (self._in_head or self._framing):
            if waited_s >= self._all.keep_alive_s:
                self.transport.close()
        elif waited_s >= self._limits.header_timeout_s:
            if self._in_head or self._framing:
                self._refuse(RequestTooSlow("The request's header did not come in time."))
            else:
                self._all.count("silent")
                self.transport.close()

    def _inspect_reader(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        read = self._written - unsent
        if not unsent:
            self._stall = None
        elif self._stall is None:
            self._stall = now, read
        elif now - self._stall[0] >= self._limits.max_answer_stall_s:
            if read - self._stall[1] < self._limits.min_body_rate * self._limits.max_answer_stall_s:
                self._all.count("slow_reader")
                self.transport.abort()
            self._stall = now, read

"""HTTP/1.1 connections that take little of a core: bodies are prepared, connections are kept, httptools parses the answers."""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

_TIMEOUT_S = 120.0
_IDLE_S = 4.0
"""Longest idle time of a connection; uvicorn closes it after 5 s, and a request sent at that moment is lost."""

_ANSWER_BYTES = 64 * 2**20
"""Most bytes of one answer, its head included."""

_HEAD_BYTES = 64 * 2**10
"""Most bytes of the head of an answer."""

_FIELD_BYTES = 500
"""Most bytes that are kept of one header."""


class BadAnswer(ConnectionError):
    """The server sent something other than an HTTP/1.1 answer of bounded size."""


@dataclass(frozen=True, slots=True)
class Address:
    """Port that a server listens on."""

    port: int
    host: str = field(default="127.0.0.1", kw_only=True)
    """IP address, or a name that is looked up for each connection."""
    name: str = field(default="127.0.0.1", kw_only=True)
    """Name of the server in its URL: for the header `Host` and the certificate."""
    tls: ssl.SSLContext | None = field(default=None, kw_only=True)

    @property
    def authority(self) -> str:
        """Value of the header `Host`."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP answer."""

    status: int
    body: bytes
    retry_after: str
    server_timing: bytes = b""


class Connection(asyncio.Protocol):
    """HTTP/1.1 connection for one request at a time, whole or in pieces."""

    def __init__(self) -> None:
        self._answered: asyncio.Future[Answer] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._idle_since = time.perf_counter()
        self._body_bytes = _ANSWER_BYTES
        self._begin()

    @staticmethod
    async def open(address: Address) -> "Connection":
        """Connect.

        Raises:
            OSError: nothing listens there, or its certificate is not trusted.
        """
        name = None if address.tls is None else address.name
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, address.host, address.port, ssl=address.tls, server_hostname=name
        )
        return connection

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._received = self._head_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._body: list[bytes] = []
        self._kept = 0
        self._in_head, self._framed = True, False
        self._retry_after = ""
        self._server_timing = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, but does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        try:
            if self._received > _ANSWER_BYTES:
                raise BadAnswer("the answer is too large")
            self._parser.feed_data(data)
            if self._in_head and self._received > _HEAD_BYTES:  # a field that has not ended yet
                raise BadAnswer("the head of the answer is too large")
        except (BadAnswer, httptools.HttpParserError) as error:
            self._fail(error if isinstance(error, BadAnswer) else BadAnswer(str(error)))
            self.close()
        except httptools.HttpParserUpgrade:  # 101, which is no HttpParserError and would end the whole run
            self._fail(BadAnswer("the server changed to another protocol"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_BYTES:  # fields after a chunked body count too
            raise BadAnswer("the head of the answer is too large")
        match name.lower():
            case b"content-length":
                self._framed = True
            case b"transfer-encoding":
                self._framed = self._framed or b"chunked" in value.lower()
            case b"retry-after":
                self._retry_after = value[:_FIELD_BYTES].decode("latin-1")
            case b"server-timing":
                self._server_timing = value[:_FIELD_BYTES]

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        if self._kept < self._body_bytes:
            self._body.append(body[: self._body_bytes - self._kept])
            self._kept += len(self._body[-1])

    def on_message_complete(self) -> None:
        self._idle_since = time.perf_counter()
        if self._parser.get_status_code() < 200:
            return self._clear()  # such as 100: the answer follows, perhaps in the bytes that are being parsed
        self._finish(keep=self._parser.should_keep_alive())

    def eof_received(self) -> None:
        """Complete an answer whose length is that of the connection."""
        if not (self._in_head or self._framed):
            self._finish(keep=False)

    def _finish(self, *, keep: bool) -> None:
        answer = Answer(self._parser.get_status_code(), b"".join(self._body), self._retry_after, self._server_timing)
        self._begin()
        if not keep:
            self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(error or ConnectionResetError())

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    @property
    def usable(self) -> bool:
        return self._transport is not None and time.perf_counter() - self._idle_since < _IDLE_S

    def expect(self, body_bytes: int = _ANSWER_BYTES) -> "asyncio.Future[Answer]":
        """Return the future answer to the next request, with the beginning of its body."""
        self._body_bytes = body_bytes
        self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def write(self, data: bytes) -> None:
        """Write to the server; ignored once the connection is lost, which fails the future answer."""
        if self._transport is not None:
            self._transport.write(data)

    async def send(self, request: bytes, body_bytes: int = _ANSWER_BYTES) -> Answer:
        """Send a whole request, even if the refusal comes first, so that the connection can be reused.

        Args:
            body_bytes: most bytes that are kept of the answer's body.

        Raises:
            OSError: no answer came.
        """
        if self._transport is None:
            raise ConnectionResetError
        answered = self.expect(body_bytes)
        self.write(request)
        return await answered

    def close(self) -> None:
        if self._transport is not None:
            # TLS ends with an exchange, for which an event loop that is about to close has no time
            encrypted = self._transport.get_extra_info("ssl_object") is not None
            (self._transport.abort if encrypted else self._transport.close)()
            self._transport = None

    def reset(self) -> None:
        """Abort with RST, as when a process dies."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
            self._transport = None


class Connections:
    """Pool of connections to one server.

    Args:
        address: the server.
        limit: most connections; above it a request waits.
        timeout_s: seconds for one request from its due time, the wait for a place in the pool included.
    """

    def __init__(self, address: Address, limit: int = 10_000, timeout_s: float = _TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(limit)
        self._in_use = self.most = 0
        self.limit = limit
        self.waited = 0
        """Requests that found all places in the pool taken."""

    async def send(
        self,
        request: bytes,
        *,
        body_bytes: int = _ANSWER_BYTES,
        due: float | None = None,
        placed: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Send a whole request.

        Args:
            body_bytes: most bytes that are kept of the answer's body.
            due: time of `time.perf_counter` from which the timeout counts, now by default.
            placed: called once the request has its place in the pool.

        Raises:
            OSError, TimeoutError: no answer came.
        """
        left_s = self._timeout_s if due is None else due + self._timeout_s - time.perf_counter()
        if left_s <= 0:
            raise TimeoutError  # which `asyncio.timeout` says only after the request was sent
        self.waited += self._free.locked()
        async with asyncio.timeout(left_s), self._free:
            self._in_use += 1
            self.most = max(self.most, self._in_use)
            placed()
            try:
                connection, answer = await self._exchange(request, body_bytes)
            finally:
                self._in_use -= 1
            self._idle.append(connection)
            return answer

    async def _exchange(self, request: bytes, body_bytes: int) -> tuple[Connection, Answer]:
        connection = await self._take()
        try:
            return connection, await connection.send(request, body_bytes)
        except BaseException:
            connection.reset()  # an answer that is still to come would be taken for the next one's
            raise

    async def _take(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
            connection.close()
        return await Connection.open(self._address)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

"""RequestParser: httptools' strict parser with limits on the size of header, URL and chunk framing."""

from dataclasses import dataclass
from typing import Protocol

import httptools

from app.errors import HeaderTooLarge, MalformedRequest, UrlTooLong
from app.http.framing import Target, check_framing, parse_target
from app.http.limits import HttpLimits

_FRAMING_PER_BYTE = 16
"""Bytes of chunk sizes and extensions allowed for each byte of a body; one chunk a byte needs 5."""

_REQUEST_LINE_BYTES = 32
"""Maximum size of method, version, spaces and line ends."""


@dataclass(frozen=True, slots=True)
class Head:
    """Head of a request whose framing is sound; its headers are those of the parser."""

    method: str
    version: str
    target: Target
    body_bytes: int | None
    """Content-Length; None for a chunked body, or none."""
    keep_alive: bool


class StopParsing(Exception):
    """Raised by an event handler to parse no further."""


class Events(Protocol):
    """Receiver of what the parser finds. An exception ends `feed`, which raises it."""

    def request_begun(self) -> None: ...
    def head_complete(self, head: Head) -> None: ...
    def body_received(self, body: bytes) -> None: ...
    def request_complete(self) -> None: ...


class RequestParser:
    """Parses the input of one connection, request by request.

    Args:
        limits: limits of the connection.
        events: receiver of what is found.
    """

    def __init__(self, limits: HttpLimits, events: Events) -> None:
        self._limits = limits
        self._events = events
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        """Header fields of the current request so far, with names in lower case."""
        self._header_bytes = 0
        self._in_body = self._upgrading = False
        self._body: list[bytes] = []  # chunks not handed on yet
        self._framing_bytes = 0  # received since the last request, neither header nor body

    @property
    def has_begun(self) -> bool:
        """True if bytes of a request have arrived that is not complete."""
        return self._framing_bytes > 0

    def feed(self, data: bytes) -> None:
        """Parse data as far as it goes.

        Raises:
            ServiceError: the request is refused.
            Exception: anything else is a bug of ours.
        """
        self._framing_bytes += len(data)
        try:
            try:
                self._parser.feed_data(data)
            finally:
                self._flush_body()
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ or error
            if isinstance(cause, StopParsing):
                return
            raise cause from None
        except httptools.HttpParserError:
            raise MalformedRequest("The request is not valid HTTP/1.1.") from None
        if self._framing_bytes > self._limits.max_header_bytes + self._limits.max_url_bytes:
            raise MalformedRequest("The body's chunks are mostly not body.") if self._in_body else self._header_too_large()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its `Upgrade`, which may be ignored (RFC 9110, 7.8).

        httptools would take what follows the header for another protocol, and a body after it for the next request.
        """
        head = [b"%s %s HTTP/%s\r\n" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self._upgrading, self._framing_bytes = False, 0
        self.feed(b"".join([*head, b"\r\n", rest]))

    def _header_too_large(self) -> HeaderTooLarge:
        fields, size = self._limits.max_header_fields, self._limits.max_header_bytes
        return HeaderTooLarge(f"The header has more than {fields} fields, or more than {size} bytes.")

    # callbacks of httptools

    def on_message_begin(self) -> None:
        self._url, self.headers, self._header_bytes, self._in_body = b"", [], 0, False
        self._events.request_begun()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.max_url_bytes:
            raise UrlTooLong(f"The URL is longer than {self._limits.max_url_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer must not pass for a header (RFC 9110, 6.5.1)
        self._header_bytes += len(name) + len(value) + 4
        self.headers.append((name.lower(), value.strip(b" \t")))  # RFC 9110, 5.5: whitespace around a value is not part of it
        if self._header_bytes > self._limits.max_header_bytes or len(self.headers) > self._limits.max_header_fields:
            raise self._header_too_large()

    def on_headers_complete(self) -> None:
        method, version = self._parser.get_method(), self._parser.get_http_version()
        length = check_framing(method, version, self.headers)
        if self._parser.should_upgrade():
            self._upgrading = True
            return
        target = parse_target(self._url)
        keep_alive = version != "1.0" and self._parser.should_keep_alive()
        self._events.head_complete(Head(method.decode("ascii"), version, target, length, keep_alive))
        self._framing_bytes = max(0, self._framing_bytes - len(self._url) - self._header_bytes - _REQUEST_LINE_BYTES)
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)  # joined later: a chunk may be one byte, and thousands of them come at once

    def _flush_body(self) -> None:
        if not self._body:
            return
        body = b"".join(self._body)
        self._body.clear()
        self._framing_bytes = max(0, self._framing_bytes - _FRAMING_PER_BYTE * len(body))
        self._events.body_received(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._flush_body()
        self._in_body, self._framing_bytes = False, 0
        self._events.request_complete()

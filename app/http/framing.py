"""Framing: checks of a request's head that the parser leaves out and two readers could take in two ways. Pure functions."""

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

from app.errors import MalformedRequest
from app.http.numbers import whole_number

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
"""Host of RFC 9110, 7.2, roughly; it is never used for a decision."""

_MAX_QUERY_PARAMETERS = 100
"""Far more than any route takes; each costs the event loop more time than its bytes do."""

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, with values."""


@dataclass(frozen=True, slots=True)
class Target:
    """Target of a request: its decoded path, and path and query as sent."""

    path: str
    raw_path: bytes
    query: bytes


def check_framing(method: bytes, version: str, headers: Headers) -> int | None:
    """Return the declared length of the body, or None (RFC 9112, 3.2, 6.1 and 6.2).

    Raises:
        MalformedRequest: method, version, Host, Transfer-Encoding or Content-Length are not those of a clean request.
    """
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or method == b"CONNECT":
        raise MalformedRequest("The request is not one of HTTP/1.1 to an origin server.")
    if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
        raise MalformedRequest("The request needs one valid Host.")
    if codings and (version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise MalformedRequest("The only Transfer-Encoding that is taken is `chunked`.")
    declared = next((value for name, value in headers if name == b"content-length"), None)
    length = None if declared is None else whole_number(declared)
    if declared is not None and length is None:
        raise MalformedRequest("The Content-Length is not a number of at most 19 digits.")
    return length


def parse_target(url: bytes) -> Target:
    """Parse the target of a request.

    Raises:
        MalformedRequest: it has no path, or too many query parameters.
    """
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise MalformedRequest("The request's target is not a path.") from None
    raw_path, query = parsed.path or b"", parsed.query or b""
    if not (raw_path and raw_path.isascii()):
        raise MalformedRequest("The request's target is not a path.")
    if query.count(b"&") >= _MAX_QUERY_PARAMETERS:
        raise MalformedRequest(f"The query has more than {_MAX_QUERY_PARAMETERS} parameters.")
    return Target(urllib.parse.unquote(raw_path.decode("ascii")), raw_path, query)

"""Framing checks as pure functions; test_hostile_http.py sends the same through a socket."""

import pytest

from app.errors import MalformedRequest
from app.http.framing import Target, check_framing, parse_target

HOST = (b"host", b"test")


@pytest.mark.parametrize(
    ("version", "headers", "length"),
    [
        ("1.1", [HOST], None),
        ("1.0", [], None),
        ("1.1", [HOST, (b"content-length", b"12")], 12),
        ("1.1", [HOST, (b"transfer-encoding", b"Chunked")], None),
        ("1.1", [(b"host", b"")], None),
        ("1.1", [(b"host", b"[::1]:8000")], None),
    ],
)
def test_clean_framing_gives_the_length(version: str, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    assert check_framing(b"POST", version, headers) == length


@pytest.mark.parametrize(
    ("method", "version", "headers"),
    [
        (b"GET", "1.1", []),
        (b"GET", "1.1", [HOST, HOST]),
        (b"GET", "1.1", [(b"host", b"a b")]),
        (b"GET", "2.0", [HOST]),
        (b"GET", "0.9", [HOST]),
        (b"CONNECT", "1.1", [HOST]),
        (b"POST", "1.0", [(b"transfer-encoding", b"chunked")]),
        (b"POST", "1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
        (b"POST", "1.1", [HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
        (b"POST", "1.1", [HOST, (b"content-length", b"+1")]),
        (b"POST", "1.1", [HOST, (b"content-length", b"1" * 20)]),
    ],
)
def test_unclean_framing_is_refused(method: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedRequest):
        check_framing(method, version, headers)


def test_target_is_decoded_once() -> None:
    assert parse_target(b"/a%2541?x=%41") == Target("/a%41", b"/a%2541", b"x=%41")


@pytest.mark.parametrize("url", [b"a:b", b"/\xff", b"/?" + b"a&" * 100], ids=["authority", "bytes", "query"])
def test_target_without_a_path_is_refused(url: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_target(url)

"""Hostile and odd HTTP through raw sockets against a real server process, which still serves after every case."""

import asyncio
import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.models import png
from tests.support.raw_http import TIMEOUT_S, Answer, answers_in, connect, read_to_end, request
from tests.support.server import Server, metric, running_server

LEAK = re.compile(rb"0x[0-9a-fA-F]{6,}|Traceback|/usr/|site-packages|<_io")
HEADER_TIMEOUT_S = 1


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    timeouts = {"header_timeout_s": HEADER_TIMEOUT_S, "keep_alive_s": HEADER_TIMEOUT_S}
    with running_server(
        model=tiny_checkpoint, max_image_bytes=100_000, cors_origins="https://shop.example", **timeouts
    ) as server:
        yield server


def talk(server: Server, sent: bytes) -> list[Answer]:
    """Send bytes and read until the server closes the connection."""
    with connect(server) as peer:
        peer.sendall(sent)
        received = read_to_end(peer)
    assert not LEAK.search(received)
    return answers_in(received)


def log_until_now(server: Server) -> list[dict[str, Any]]:
    """Return the log up to a request made for this purpose."""
    marker = f"marker-{len(server.log)}"
    httpx.get(f"{server.url}/model", headers={"X-Request-ID": marker})
    while server.wait_for_log("request").get("request_id") != marker:
        pass
    return server.log


LAST = request("GET /health/live", "Connection: close", "X-Request-ID: last")
SMUGGLED = request("GET /model", "X-Request-ID: smuggled")


def assert_serves(server: Server) -> None:
    assert server.process.poll() is None
    assert httpx.post(f"{server.url}/predict", content=png(0), timeout=TIMEOUT_S).status_code == 200


def chunked(*chunks: bytes, fields: tuple[str, ...] = ()) -> bytes:
    return request("POST /predict?vectors=false", "Transfer-Encoding: chunked", *fields) + b"".join(chunks)


REFUSED: dict[str, tuple[bytes, int, str]] = {
    # ambiguous framing
    "length-and-chunked": (
        request("POST /predict", "Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "two-lengths": (request("POST /predict", "Content-Length: 5", "Content-Length: 6"), 400, "malformed_request"),
    "two-equal-lengths": (request("POST /predict", "Content-Length: 0", "Content-Length: 0"), 400, "malformed_request"),
    "length-with-sign": (request("POST /predict", "Content-Length: +5"), 400, "malformed_request"),
    "negative-length": (request("POST /predict", "Content-Length: -1"), 400, "malformed_request"),
    "length-list": (request("POST /predict", "Content-Length: 5, 5"), 400, "malformed_request"),
    "length-overflow": (request("POST /predict", f"Content-Length: {2**64 + 5}"), 400, "malformed_request"),
    "length-of-4301-digits": (
        request("POST /predict", "Content-Length: " + "0" * 4300 + "5") + b"abcde",
        400,
        "malformed_request",
    ),
    "length-of-20-digits": (request("POST /predict", "Content-Length: " + "0" * 19 + "5") + b"abcde", 400, "malformed_request"),
    "blank-in-length": (request("POST /predict", "Content-Length: 5 5") + b"abcde", 400, "malformed_request"),
    "no-blank-in-length": (request("POST /predict", "Content-Length: 5\x0b") + b"abcde", 400, "malformed_request"),
    "tab-after-coding": (
        request("POST /predict", "Transfer-Encoding: chunked\t") + b"3\r\nabc\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "no-blank-after-coding": (
        request("POST /predict", "Transfer-Encoding: chunked\xa0") + b"3\r\nabc\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "unknown-coding": (request("POST /predict", "Transfer-Encoding: xchunked"), 400, "malformed_request"),
    "coding-before-chunked": (request("POST /predict", "Transfer-Encoding: gzip, chunked"), 400, "malformed_request"),
    "two-codings": (
        request("POST /predict", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        400,
        "malformed_request",
    ),
    "chunked-twice": (request("POST /predict", "Transfer-Encoding: chunked, chunked"), 400, "malformed_request"),
    "chunked-in-1.0": (
        b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "bad-chunk-size": (chunked(b"zz\r\nabc\r\n0\r\n\r\n"), 400, "malformed_request"),
    "bad-chunk-end": (chunked(b"3\r\nabcXX0\r\n\r\n"), 400, "malformed_request"),
    "negative-chunk-size": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400, "malformed_request"),
    "hex-prefixed-chunk-size": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400, "malformed_request"),
    "chunk-size-overflow": (chunked(b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n"), 400, "malformed_request"),
    "bare-lf-after-chunk-size": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400, "malformed_request"),
    "bare-lf": (b"GET /health/live HTTP/1.1\nHost: test\n\n", 400, "malformed_request"),
    "bare-cr": (b"GET /health/live HTTP/1.1\r\nHost: test\rX: y\r\n\r\n", 400, "malformed_request"),
    "space-before-colon": (request("GET /health/live", "X-A : b"), 400, "malformed_request"),
    "folded-header": (request("GET /health/live", "X-A: b\r\n c"), 400, "malformed_request"),
    "folded-length": (request("POST /predict", "Content-Length:\r\n 5"), 400, "malformed_request"),
    "nul-in-header": (request("GET /health/live", "X-A: \x00"), 400, "malformed_request"),
    "nameless-header": (request("GET /health/live", ": b"), 400, "malformed_request"),
    "no-colon": (request("GET /health/live", "X-A"), 400, "malformed_request"),
    "no-host": (request("GET /health/live", host=""), 400, "malformed_request"),
    "two-hosts": (request("GET /health/live", "Host: other"), 400, "malformed_request"),
    "strange-host": (request("GET /health/live", host="Host: evil.example/x@y"), 400, "malformed_request"),
    # not HTTP/1.1 to an origin server
    "http-0.9": (b"GET /health/live\r\n\r\n", 400, "malformed_request"),
    "http-1.2": (b"GET /health/live HTTP/1.2\r\nHost: test\r\n\r\n", 400, "malformed_request"),
    "http-2.0": (b"GET /health/live HTTP/2.0\r\nHost: test\r\n\r\n", 400, "malformed_request"),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
    "tls-hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), 400, "malformed_request"),
    "connect": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 400, "malformed_request"),
    "unknown-method": (request("FETCH /predict"), 400, "malformed_request"),
    "path-without-slash": (request("GET @evil.example"), 400, "malformed_request"),
    "url-without-path": (request("GET http://evil.example"), 400, "malformed_request"),
    "bytes-in-url": (request("GET /\xff\xfe"), 400, "malformed_request"),
    "nul-in-url": (request("GET /\x00"), 400, "malformed_request"),
    "space-in-url": (request("GET /a b"), 400, "malformed_request"),
    "101-parameters": (request("GET /health/live?" + "&".join("a" * 101)), 400, "malformed_request"),
    # unbounded input
    "long-url": (request("GET /" + "a" * 100_000), 414, "url_too_long"),
    "long-query": (request("GET /health/live?" + "a" * 8200), 414, "url_too_long"),
    "long-header": (request("GET /health/live", "X-A: " + "a" * 100_000), 431, "header_too_large"),
    "long-headers-in-all": (request("GET /health/live", *[f"X-{i}: {'a' * 1000}" for i in range(40)]), 431, "header_too_large"),
    "5000-headers": (request("GET /health/live", *["a: b"] * 5000), 431, "header_too_large"),
    "100-headers-and-one": (request("GET /health/live", *["a: b"] * 100), 431, "header_too_large"),
}

ENDLESS: dict[str, tuple[bytes, int, str]] = {
    "endless-url": (b"GET /" + b"a" * 100_000, 414, "url_too_long"),
    "endless-header": (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 100_000, 431, "header_too_large"),
    "endless-header-name": (b"GET / HTTP/1.1\r\n" + b"a" * 100_000, 431, "header_too_large"),
    "empty-lines-for-ever": (b"\r\n" * 50_000, 431, "header_too_large"),
    "endless-chunk-extension": (chunked(b"3;" + b"a" * 100_000), 400, "malformed_request"),
    "endless-chunk-size": (chunked(b"0" * 100_000), 400, "malformed_request"),
    "endless-trailer": (chunked(b"3\r\nabc\r\n0\r\nX-A: " + b"a" * 100_000), 400, "malformed_request"),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in REFUSED.items()])
def test_unclean_http_is_refused(server: Server, case: tuple[bytes, int, str]) -> None:
    sent, status, code = case
    answers = talk(server, sent + SMUGGLED)
    assert [answer.status for answer in answers] == [status]
    assert answers[0].problem["code"] == code
    assert answers[0].headers["connection"] == "close"
    assert answers[0].headers["x-request-id"] != "smuggled"
    assert_serves(server)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in ENDLESS.items()])
def test_endless_input_is_refused_in_time(server: Server, case: tuple[bytes, int, str]) -> None:
    sent, status, code = case
    (answer,) = talk(server, sent)
    assert (answer.status, answer.problem["code"], answer.headers["connection"]) == (status, code, "close")
    assert_serves(server)


def test_refusals_keep_the_order_of_requests(server: Server) -> None:
    first = request("POST /predict?vectors=false", "X-Request-ID: first", body=png(0))
    answers = talk(server, first + request("GET /health/live", "X-A : b") + SMUGGLED)
    assert [answer.status for answer in answers] == [200, 400]
    assert answers[0].headers["x-request-id"] == "first"


def test_refusals_are_counted_by_reason(server: Server) -> None:
    names = (
        'vit_http_refused_total{reason="url_too_long"}',
        'vit_http_requests_total{method="other",protocol="predict",route="unmatched",status="414"}',
    )
    before = [metric(server, name) for name in names]
    talk(server, request("GET /" + "a" * 100_000))
    assert [metric(server, name) for name in names] == [count + 1 for count in before]


def test_refusals_have_cors_headers(server: Server) -> None:
    (answer,) = talk(server, request("GET /health/live", "Origin: https://shop.example", *["a: b"] * 100))
    assert answer.status == 431
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


SERVED: dict[str, tuple[bytes, int]] = {
    "absolute-form": (request("GET http://evil.example/health/live", "Connection: close"), 200),
    "http-1.0-without-host": (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
    "asterisk-form": (request("OPTIONS *", "Connection: close"), 404),
    "trace": (request("TRACE /predict", "Connection: close"), 405),
    "99-headers": (request("GET /health/live", "Connection: close", *["a: b"] * 98), 200),
    "8000-bytes-of-query": (request("GET /health/live?" + "a" * 8000, "Connection: close"), 200),
    "30000-bytes-of-header": (request("GET /health/live", "Connection: close", "X-A: " + "a" * 30_000), 200),
    "one-byte-chunks": (
        chunked(*(b"1\r\n%c\r\n" % byte for byte in png(0)), b"0\r\n\r\n", fields=("Connection: close",)),
        200,
    ),
    "100-parameters": (request("GET /health/live?" + "&".join("a" * 100), "Connection: close"), 200),
    "blanks-around-length": (
        request("POST /predict", f"Content-Length: \t {len(png(0))}\t ", "Connection: close") + png(0),
        200,
    ),
    "blanks-around-host": (request("GET /health/live", "Connection: close", host="Host: \ttest\t "), 200),
    "h2c-upgrade": (
        request(
            "POST /predict",
            "Connection: Upgrade, HTTP2-Settings, close",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
            body=png(0),
        ),
        200,
    ),
    "websocket-upgrade": (
        request("GET /predict", "Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Key: x"),
        405,
    ),
    "slash-at-the-end": (request("POST /predict/", "Connection: close"), 404),
    "two-slashes": (request("POST //predict", "Connection: close"), 404),
    "host-like-path": (request("POST //evil.example/predict/", "Connection: close"), 404),
    "capitals": (request("POST /PREDICT", "Connection: close"), 404),
    "encoded-slash": (request("POST /predict%2f", "Connection: close"), 404),
    "encoded-nul": (request("POST /predict%00", "Connection: close"), 404),
    "dots": (request("GET /../../etc/passwd", "Connection: close"), 404),
    "encoded-dots": (request("GET /%2e%2e/etc/passwd", "Connection: close"), 404),
    "backslash": (request("GET /..%5c", "Connection: close"), 404),
    "encoded-junk": (request("GET /%ff%fe%zz", "Connection: close"), 404),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in SERVED.items()])
def test_odd_but_clear_http_is_answered(server: Server, case: tuple[bytes, int]) -> None:
    sent, status = case
    (answer,) = talk(server, sent)
    assert answer.status == status
    assert b"evil" not in answer.body
    assert "location" not in answer.headers


def test_body_after_upgrade_is_no_request(server: Server) -> None:
    with connect(server) as peer:
        peer.sendall(request("POST /predict", "Connection: Upgrade", "Upgrade: h2c", f"Content-Length: {len(SMUGGLED)}"))
        peer.sendall(SMUGGLED)  # in a segment of its own, as a proxy may send it
        peer.sendall(LAST)
        answers = answers_in(read_to_end(peer))
    assert [answer.status for answer in answers] == [415, 200]
    assert answers[1].headers["x-request-id"] == "last"


def test_input_after_connection_close_is_dropped(server: Server) -> None:
    (answer,) = talk(server, LAST + SMUGGLED)
    assert answer.headers["x-request-id"] == "last"


@pytest.mark.parametrize(
    "sent",
    [
        request("POST /predict", "Content-Length: 5 \t") + b"hello",
        chunked(b"5\r\nhello\r\n0\r\n\r\n").replace(b"chunked", b"chunked "),
    ],
    ids=["length", "chunked"],
)
def test_whitespace_hides_no_second_request(server: Server, sent: bytes) -> None:
    answers = talk(server, sent + LAST)
    assert [answer.status for answer in answers] == [415, 200]
    assert answers[1].headers["x-request-id"] == "last"


def test_whitespace_around_values_is_dropped(server: Server) -> None:
    fields = ("X-Request-ID: \t mine \t", "Content-Encoding: identity\t", "X-Request-Timeout-Ms: \t30000 ", "Connection: close")
    (answer,) = talk(server, request("POST /predict", *fields, body=png(0)))
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize(
    ("version", "expect", "told"),
    [("1.1", "100-continue", True), ("1.1", "100-Continue \t", True), ("1.0", "100-continue", False), ("1.1", "more", False)],
)
def test_only_http_1_1_gets_100_continue(server: Server, version: str, expect: str, told: bool) -> None:
    with connect(server) as peer:
        head = f"POST /predict HTTP/{version}\r\nHost: test\r\nConnection: close\r\nExpect: {expect}\r\n"
        peer.sendall(f"{head}Content-Length: {len(png(0))}\r\n\r\n".encode())
        if told:
            assert peer.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(png(0))
        (answer,) = answers_in(read_to_end(peer))
    assert answer.status == 200


def test_trailer_is_no_header(server: Server) -> None:
    sent = chunked(b"3\r\nabc\r\n0\r\nContent-Encoding: gzip\r\nX-Request-ID: trailer\r\n\r\n", fields=("Connection: close",))
    (answer,) = talk(server, sent)
    assert answer.problem["detail"] != "Compressed request bodies are not taken; send it without Content-Encoding."
    assert answer.headers["x-request-id"] != "trailer"


def test_body_of_90_000_chunks_is_read(server: Server) -> None:
    image = png(0).ljust(90_000, b"\0")  # decoders stop at the end of the image
    answers = talk(server, chunked(*(b"1\r\n%c\r\n" % byte for byte in image), b"0\r\n\r\n") + LAST)
    assert [answer.status for answer in answers] == [200, 200]


def test_ten_pipelined_requests_get_ten_answers(server: Server) -> None:
    answers = talk(server, request("GET /health/live") * 9 + LAST)
    assert [answer.status for answer in answers] == [200] * 10


def test_pipelining_is_bounded(server: Server) -> None:
    answers = talk(server, request("GET /health/live") * 1000)
    assert 1 <= len(answers) < 100
    assert {answer.status for answer in answers} == {200}
    assert answers[-1].headers["connection"] == "close"


def test_random_bytes_are_refused_each_time(server: Server) -> None:
    generator = random.Random(0)
    for _ in range(100):
        assert {answer.status for answer in talk(server, generator.randbytes(1000) + b"\r\n\r\n")} <= {400, 431}
    assert_serves(server)


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n", b"GET /health", b"GET /health/live HTTP/1.1\r\nHost: test\r\nX-A: b"],
    ids=["nothing", "an-empty-line", "half-a-line", "half-a-header"],
)
def test_missing_header_ends_the_connection(server: Server, sent: bytes) -> None:
    answers = talk(server, sent)
    assert [answer.problem["code"] for answer in answers] == (["request_too_slow"] if sent else [])
    assert_serves(server)


async def test_slow_header_ends_the_connection(server: Server) -> None:
    async def dribble() -> bytes:
        url = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)

        async def write() -> None:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.05)

        writer.write(b"GET /health/live HTTP/1.1\r\nX-A: ")
        writing = asyncio.create_task(write())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await reader.read()
        finally:
            writing.cancel()
            writer.close()

    (answer,) = answers_in(await dribble())
    assert (answer.status, answer.headers["connection"]) == (408, "close")


def test_next_header_has_a_timeout_too(server: Server) -> None:
    answers = talk(server, request("GET /health/live") + b"GET /health")
    assert [answer.status for answer in answers] == [200, 408]


UNREAD: dict[str, tuple[bytes, int]] = {
    "length-too-large": (request("POST /predict", f"Content-Length: {10**10}"), 413),
    "length-too-large-and-expecting": (request("POST /predict", f"Content-Length: {10**10}", "Expect: 100-continue"), 413),
    "large-to-no-such-path": (request("POST /nowhere", "Content-Length: 5000000"), 404),
    "expecting": (request("POST /nowhere", "Content-Length: 5000", "Expect: 100-continue"), 404),
    "chunks-without-end": (chunked(*[b"%x\r\n%s\r\n" % (65536, bytes(65536))] * 3), 413),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in UNREAD.items()])
def test_answer_before_large_body_closes(server: Server, case: tuple[bytes, int]) -> None:
    sent, status = case
    (answer,) = talk(server, sent)
    assert (answer.status, answer.headers["connection"]) == (status, "close")


UNREAD_BUT_SMALL: dict[str, tuple[bytes, int]] = {
    "compressed": (request("POST /predict", "Content-Length: 5000", "Content-Encoding: gzip"), 415),
    "compressed-in-part": (
        request("POST /predict", "Content-Length: 5000", "Content-Encoding: identity", "Content-Encoding: gzip"),
        415,
    ),
    "no-such-path": (request("POST /nowhere", "Content-Length: 5000"), 404),
    "no-such-method": (request("PUT /predict", "Content-Length: 5000"), 405),
    "bad-parameter": (request("POST /predict?top_k=0", "Content-Length: 5000"), 422),
    "get-with-a-body": (request("GET /health/live", "Content-Length: 5000"), 200),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in UNREAD_BUT_SMALL.items()])
def test_small_unread_body_keeps_the_connection(server: Server, case: tuple[bytes, int]) -> None:
    sent, status = case
    with connect(server) as peer:
        peer.sendall(sent)
        answer = peer.recv(65536)  # before the body
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" not in answer.lower()
        peer.sendall(b"POST /forged HTTP/1.1\r\n".ljust(5000, b"x") + request("GET /health/live", "Connection: close"))
        answers = answer + b"".join(iter(lambda: peer.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"%d" % status, b"200"]


def test_refused_sender_can_read_the_answer(server: Server) -> None:
    body = bytes(8_000_000)  # more than socket buffers hold
    assert httpx.post(f"{server.url}/predict", content=body, timeout=TIMEOUT_S).status_code == 413


def test_endless_sender_is_cut(server: Server) -> None:
    sent = 0
    with connect(server) as peer:
        peer.sendall(request("POST /predict", "Transfer-Encoding: chunked"))
        with pytest.raises(ConnectionError):
            while sent < 10**9:
                peer.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
    assert_serves(server)


@pytest.mark.parametrize("sent", ["secret\r\nX-Forged: 1", "secret\x1b[31m", "secret\x00", "s\xe9cret", "secret " * 30])
def test_request_id_splits_no_header_or_log(server: Server, sent: str) -> None:
    answers = talk(server, request("GET /nowhere", f"X-Request-ID: {sent}", "Connection: close"))
    for answer in answers:
        assert "x-forged" not in answer.headers
        assert re.fullmatch("[0-9a-f]{32}|secret", answer.headers["x-request-id"])


def test_only_sane_request_ids_are_logged(server: Server) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="private\\n.png"\r\nX-A: private\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x", "User-Agent": "private", "X-A": "private"}
    for body in (part + png(0), part + b"private"):
        httpx.post(f"{server.url}/predict?private", content=body + b"\r\n--x--\r\n", headers=form)
    talk(server, request("GET /private%0aprivate", "X-A: private", "X-B : private"))
    talk(server, b"PRIVATE /private private\r\n")
    log = log_until_now(server)
    assert not [record for record in log if "private" in json.dumps(record).lower()]
    assert all(isinstance(record, dict) and "level" in record for record in log[-10:])  # only lines that we write


def test_aborted_uploads_are_no_errors(server: Server) -> None:
    for sent in (
        request("POST /predict", "Content-Length: 5000") + b"half",
        chunked(b"5\r\nab"),
        chunked(b"1\r\na\r\n" * 90_000),
        request("POST /predict", "Content-Length: 90000", "Content-Type: multipart/form-data; boundary=x") + b"--x\r\nConte",
        b"POST /pred",
    ):
        for _ in range(10):
            with connect(server) as peer:
                peer.sendall(sent)
    with connect(server) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        peer.sendall(request("POST /predict", "Content-Length: 5000") + b"half")
    assert_serves(server)
    text = httpx.get(f"{server.url}/metrics").text
    assert not re.search(r'status="5\d\d"', text)
    assert not [record for record in log_until_now(server) if "exception" in record or record.get("level") == "error"]

"""No body within the limits blocks the event loop: the worst known ones, against a real server with default limits."""

import base64
import contextlib
import dataclasses
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
import torch

from model.checkpoints.checkpoint import save_checkpoint
from model.vit import VisionTransformer
from tests.support.models import TINY_DINOV2, TINY_PREPROCESSING, png
from tests.support.raw_http import answers_in, connect, read_to_end, request
from tests.support.server import Server, running_server

MIB = 1 << 20
LONGEST_S = 0.05
ATTEMPTS = 5
"""Number of tries; other load on the machine differs from one to the next."""

CLASSES = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = VisionTransformer(dataclasses.replace(TINY_DINOV2, num_classes=CLASSES)).eval()
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "many-classes"
    save_checkpoint(checkpoint, model, TINY_PREPROCESSING, tuple(f"class {index}" for index in range(CLASSES)), torch.float32)
    settings = {"model": checkpoint, "engine": "torch", "decode_workers": 1}
    with running_server(command=[sys.executable, "-m", "tests.support.watched_server"], **settings) as server:
        yield server


def fill(pattern: bytes, size: int) -> bytes:
    """Repeat a pattern as often as it fits."""
    return pattern * (size // len(pattern))


def noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


def json_(body: bytes, path: str = "/predict/batch") -> bytes:
    return request(f"POST {path}", "Content-Type: application/json", "Connection: close", body=body)


def form(body: bytes, path: str = "/predict/batch") -> bytes:
    return request(f"POST {path}", "Content-Type: multipart/form-data; boundary=b", "Connection: close", body=body)


def chunked(body: bytes, media_type: str) -> bytes:
    return request("POST /predict", "Transfer-Encoding: chunked", f"Content-Type: {media_type}", "Connection: close") + body


def part(*fields: bytes, name: bytes = b"images") -> bytes:
    return b"\r\n".join([b"--b", b"Content-Disposition: form-data; name=" + name, *fields, b"", b""])


def part_of_each(images: int) -> bytes:
    return b"".join(part() + png(seed) + b"\r\n" for seed in range(images)) + b"--b--\r\n"


def padded_jpeg(size: int) -> bytes:
    """Return empty JPEG segments with the maximum of fill bytes between them."""
    return b"\xff\xd8" + fill(b"\xff" * 65_000 + b"\xe0\0\2", size)


BODIES: dict[str, tuple[Callable[[], bytes], int]] = {
    # ordinary bodies of the maximum size
    "raw": (lambda: request("POST /predict", "Connection: close", body=noise(10 * MIB)), 415),
    "part": (lambda: form(part(name=b"image") + noise(10 * MIB) + b"\r\n--b--\r\n", "/predict"), 415),
    "base64": (lambda: json_(b'{"image":"%b"}' % base64.b64encode(noise(10 * MIB)), "/predict"), 415),
    "parts": (lambda: form((part() + noise(9 * MIB) + b"\r\n") * 7 + b"--b--\r\n"), 200),
    "base64-strings": (lambda: json_(b'{"images":[%b]}' % b",".join([b'"%b"' % fill(b"AAAA", 9 * MIB)] * 7)), 200),
    "all-classes": (lambda: form(part_of_each(32), f"/predict/batch?top_k={CLASSES}"), 200),
    # hostile bodies
    "one-part-of-64-MB": (lambda: form(part() + noise(63 * MIB) + b"\r\n--b--\r\n"), 200),
    "empty-parts": (lambda: form((part() + b"\r\n") * 200_000 + b"--b--\r\n"), 422),
    "empty-parts-of-64-MB": (lambda: form(fill(part() + b"\r\n", 63 * MIB)), 422),
    "large-part-headers": (lambda: form((part(*[b"a:" + b" " * 4000] * 7) + b"\r\n") * 32 + b"--b--\r\n"), 200),
    "parameters-of-a-part": (lambda: form((part(b"a: b", name=b"images" + b";" * 4000) + b"\r\n") * 32), 400),
    "like-the-boundary": (lambda: form(part() + fill(b"\r\n--bx", 63 * MIB) + b"\r\n--b--\r\n"), 400),
    "blanks-behind-the-boundary": (lambda: form(part() + b"\r\n--b" + b" " * (63 * MIB)), 400),
    "line-ends": (lambda: form(part() + b"\r\n" * (31 * MIB) + b"\r\n--b--\r\n"), 200),
    "epilogue": (lambda: form(part() + b"\r\n--b--\r\n" + fill(b"\r\n--b\r\n", 63 * MIB)), 200),
    "one-string": (lambda: json_(b'{"images":["%b"]}' % fill(b"AAAA", 63 * MIB)), 200),
    "escapes": (lambda: json_(b'{"images":["%b"]}' % fill(rb"\/", 32 * MIB)), 200),
    "escapes-of-six": (lambda: json_(rb'{"images":["%b"]}' % fill(rb"\u002b", 32 * MIB)), 200),
    "string-passed-over": (lambda: json_(b'{"note":"%b"}' % fill(rb"\"", 32 * MIB)), 400),
    "four-byte-characters": (lambda: json_(b'{"note":"%b"}' % ("\N{GRINNING FACE}".encode() * (15 * MIB))), 400),
    "utf-16": (lambda: json_(('{"images":["%s"]}' % ("A" * (31 * MIB))).encode("utf-16")), 200),
    "blanks": (lambda: json_(b" " * (63 * MIB) + b'{"images":[]}'), 400),
    "digits": (lambda: json_(b'{"images":%b}' % (b"1" * (63 * MIB))), 400),
    "empty-strings": (lambda: json_(fill(b'"",', 63 * MIB)), 400),
    "open-lists": (lambda: json_(b"[" * (63 * MIB)), 400),
    "chunks-of-one-byte": (lambda: chunked(b"1\r\na\r\n" * MIB + b"0\r\n\r\n", "image/png"), 415),
    "chunks-of-one-byte-of-json": (lambda: chunked(b'1\r\n"\r\n' * MIB + b"0\r\n\r\n", "application/json"), 400),
    "padded-jpegs": (lambda: form((part() + padded_jpeg(9 * MIB) + b"\r\n") * 7 + b"--b--\r\n"), 200),
    "content-type": (lambda: request("POST /predict", "Content-Type: a/b" + ";" * 31_000, "Connection: close", body=b"x"), 400),
}


def held_s(server: Server) -> float:
    """Return the longest time for which the event loop was blocked since the last call."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(r"^test_event_loop_held_seconds (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def status_of(server: Server, sent: bytes) -> int:
    """Send as fast as the server reads, and receive meanwhile."""
    with connect(server) as peer:
        received: list[bytes] = []
        reading = threading.Thread(target=lambda: received.append(read_to_end(peer)))
        reading.start()
        with contextlib.suppress(OSError):  # the server may have refused it already
            peer.sendall(sent)
        reading.join()
    (answer,) = answers_in(received[0])
    return answer.status


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in BODIES.items()])
def test_no_body_blocks_the_event_loop(server: Server, case: tuple[Callable[[], bytes], int]) -> None:
    build, status = case
    sent, seen = build(), []
    for _ in range(ATTEMPTS):
        held_s(server)
        assert status_of(server, sent) == status
        seen.append(held_s(server))
        if seen[-1] < LONGEST_S:
            return
    pytest.fail(f"held up for {[f'{seconds * 1000:.0f} ms' for seconds in seen]}")

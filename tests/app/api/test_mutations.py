"""Valid requests with a few bytes changed are answered or refused, and none is a 500."""

import asyncio
import random
import re
from collections.abc import Iterator

import httpx
import pytest

from app.http.limits import HttpLimits
from tests.support.models import png
from tests.support.predict import IMAGE, MULTIPART, multipart
from tests.support.wire import PATIENCE_S, open_wire

SPICE = (b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b'"', b"\\", b"--", b"\xff", b"%", b"0", b"-1", b"9" * 20)

BODY = b"3;x=y\r\nabc\r\n5\r\ndefgh\r\n0\r\nX-Trailer: t\r\n\r\n"
REQUESTS = (
    b"GET /path?query=1 HTTP/1.1\r\nHost: test\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
    b"POST /path HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
    b"POST /path HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n" + BODY,
    b"POST /path HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
)


def mutations(good: bytes, number: int) -> Iterator[bytes]:
    """Yield the same mutants each time: bytes replaced, removed, inserted, doubled, or cut off at the end."""
    generator = random.Random(number)
    for _ in range(number):
        mutant = bytearray(good)
        for _ in range(generator.randint(1, 3)):
            start = generator.randrange(len(mutant) + 1)
            end = min(len(mutant), start + generator.randint(0, 8))
            change = generator.choice((b"", generator.choice(SPICE), generator.randbytes(1), bytes(mutant[start:end]) * 2))
            mutant[start:end] = change
        yield bytes(mutant[: generator.randrange(len(mutant) + 1)] if generator.random() < 0.1 else mutant)


@pytest.mark.parametrize("good", REQUESTS, ids=["get", "length", "chunked", "upgrade"])
async def test_mutated_request_is_answered_or_refused(good: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, body_grace_s=0.2, keep_alive_s=0.2)) as wire:
        at_once = asyncio.Semaphore(100)

        async def statuses(sent: bytes) -> list[bytes]:
            async with at_once, asyncio.timeout(PATIENCE_S):
                reader, writer = await wire.connect(sent)
                received = await reader.read()  # until the server closes
                writer.close()
            return re.findall(rb"^HTTP/1.1 (\d+)", received, re.MULTILINE)

        seen = await asyncio.gather(*(statuses(sent) for sent in mutations(good, 300)))
        assert set().union(*seen) == {b"200", b"400", b"408"}
        await wire.until(lambda: wire.connections == 0)
        assert (await wire.ask("/")) == b"HTTP/1.1 200 OK"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_mutated_multipart_is_answered_or_refused(client: httpx.AsyncClient) -> None:
    form = multipart(("Content-Disposition: form-data; name=note", b"some"), (f'{IMAGE}; filename="a.png"', png(0)))
    good: bytes = form["content"]
    start = good.index(b"\x89PNG") + 8  # images with wrong bytes have their own tests
    end = start + len(png(0)) - 8
    seen = set()
    for before, after in zip(mutations(good[:start], 500), mutations(good[end:], 500), strict=True):
        for body in (before + good[start:], good[:end] + after):
            response = await client.post("/predict?vectors=false", content=body, headers={"Content-Type": MULTIPART})
            seen.add(response.status_code)
    assert {200, 400} <= seen <= {200, 400, 413, 415, 422}

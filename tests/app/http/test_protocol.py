"""HttpProtocol with small limits against slow and many peers. The application behind it is a stand-in."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response
from structlog.stdlib import ProcessorFormatter

from app.api.native import NATIVE
from app.api.wire import Wire, Wires
from app.http.limits import HttpLimits
from app.http.parser import RequestParser
from app.http.protocol import HttpProtocol
from app.server import server_error
from tests.support.wire import BIG, PATIENCE_S, get, open_wire


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"], ids=["length", "chunked"])
async def test_slow_body_is_408(framing: bytes) -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, body_grace_s=0.2)) as wire:
        reader, writer = await wire.connect(b"POST / HTTP/1.1\r\nHost: test\r\n" + framing + b"\r\n\r\n")

        async def dribble() -> None:
            while True:
                writer.write(b"a" if framing.startswith(b"Content") else b"1\r\na\r\n")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        dribbling.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nconnection: close\r\n" in answer
        assert b'"code":"request_too_slow"' in answer
        assert b"connection: close" in answer.lower()
        assert wire.count("request_too_slow") == 1


async def test_stopped_body_is_408() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, body_grace_s=0.2)) as wire:
        reader, _ = await wire.connect(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc")
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_unread_body_has_a_pace_too() -> None:
    async with open_wire(HttpLimits(body_grace_s=0.2, header_timeout_s=1)) as wire:
        reader, writer = await wire.connect(b"POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 5000\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"a beginning")
            assert await reader.read() == b""


async def test_begun_header_outlives_keep_alive() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.5, keep_alive_s=0.01)) as wire:
        reader, _ = await wire.connect(get("/") + b"GET /")
        async with asyncio.timeout(PATIENCE_S):
            answers = await reader.read()
        assert (answers[:12], b"HTTP/1.1 408 " in answers) == (b"HTTP/1.1 200", True)


async def test_idle_connection_outlives_header_timeout() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2)) as wire:
        reader, writer = await wire.connect(get("/"))
        silent, _ = await wire.connect()
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"done")
            assert await silent.read() == b""  # its timeout has passed
            writer.write(get("/"))
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert wire.count("silent") == 1


async def test_idle_connection_is_closed() -> None:
    async with open_wire(HttpLimits(header_timeout_s=PATIENCE_S, keep_alive_s=0.2)) as wire:
        reader, _ = await wire.connect(get("/"))
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).endswith(b"done")
        assert wire.count("silent") == 0


@pytest.mark.parametrize("first", [b"\r\n", b"G", b"\r\nGE"], ids=["an empty line", "a letter", "both"])
async def test_next_header_is_timed_from_first_byte(first: bytes) -> None:
    async with open_wire(HttpLimits(header_timeout_s=2)) as wire:
        reader, writer = await wire.connect(get("/"))
        silent, _ = await wire.connect()
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"done")
            await silent.read()  # two seconds have passed
            writer.write(first)
            await asyncio.sleep(0.7)  # it is inspected meanwhile
            whole = b"\r\n" + get("/") if first.startswith(b"\r\n") else get("/")
            writer.write(whole.removeprefix(first))
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"


async def test_header_after_idle_time_has_a_timeout() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2)) as wire:
        for first in (b"\r\n", b"GET /"):
            reader, writer = await wire.connect(get("/"))
            async with asyncio.timeout(PATIENCE_S):
                await reader.readuntil(b"done")
                writer.write(first)
                assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("keep_alive_s", [0.2, PATIENCE_S])
async def test_connection_is_idle_after_unread_body(keep_alive_s: float) -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, keep_alive_s=keep_alive_s)) as wire:
        reader, writer = await wire.connect(b"POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"done")
            writer.write(b"body")
            if keep_alive_s < 1:
                assert await reader.read() == b""
                return
            silent, _ = await wire.connect()
            assert await silent.read() == b""
            writer.write(get("/"))
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"


async def test_slow_answer_is_awaited() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.1, body_grace_s=0.1, max_answer_stall_s=0.1)) as wire:
        reader, _ = await wire.connect(get("/held"))
        silent, _ = await wire.connect()
        async with asyncio.timeout(PATIENCE_S):
            assert await silent.read() == b""  # its timeout has passed
        wire.gate.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_peer_that_does_not_read_is_cut() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, max_answer_stall_s=0.2)) as wire:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(wire.address)
        peer.sendall(get("/big"))
        await wire.until(lambda: wire.count("slow_reader") == 1)
        await wire.until(lambda: wire.connections == 0)
        peer.close()


async def test_slow_reader_gets_the_whole_answer() -> None:
    async with open_wire(HttpLimits(header_timeout_s=0.2, max_answer_stall_s=0.2)) as wire:
        reader, _ = await wire.connect(get("/big"))
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(BIG)
        assert (head[:12], len(body)) == (b"HTTP/1.1 200", BIG)
        assert wire.count("slow_reader") == 0


async def test_oldest_idle_connection_is_evicted() -> None:
    async with open_wire(HttpLimits(max_connections=4, reserve=1, header_timeout_s=PATIENCE_S)) as wire:
        idle = [await wire.connect(b"GET /ha") for _ in range(4)]
        await wire.until(lambda: wire.connections == 4)
        assert await wire.ask("/") == b"HTTP/1.1 200 OK"
        async with asyncio.timeout(PATIENCE_S):
            assert await idle[0][0].read() == b""
        assert wire.count("evicted") == 1
        idle[1][1].write(b"lf HTTP/1.1\r\nHost: test\r\n\r\n")
        assert await idle[1][0].readline() == b"HTTP/1.1 200 OK\r\n"  # the others stay open


async def test_silent_flood_displaces_itself() -> None:
    async with open_wire(HttpLimits(max_connections=50, reserve=5, header_timeout_s=PATIENCE_S)) as wire:
        for _ in range(200):
            await wire.connect()
        assert [await wire.ask(path) for path in ("/", "/health/live")] == [b"HTTP/1.1 200 OK"] * 2
        assert wire.connections == 50
        assert wire.count("evicted") == 152


async def test_lingering_peers_are_evicted() -> None:
    async with open_wire(HttpLimits(max_connections=2, reserve=1, linger_s=PATIENCE_S)) as wire:
        for _ in range(3):
            reader, _ = await wire.connect(b"nonsense\r\n\r\n")
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        assert await wire.ask("/") == b"HTTP/1.1 200 OK"


async def test_eviction_drops_unread_answers() -> None:
    async with open_wire(HttpLimits(max_connections=1, reserve=1, max_answer_stall_s=PATIENCE_S)) as wire:
        reader, _ = await wire.connect(get("/big"))
        async with asyncio.timeout(PATIENCE_S):
            while await wire.ask("/") != b"HTTP/1.1 200 OK":  # busy until its response is written
                pass
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(BIG)


async def test_disconnect_cancels_the_first_of_many() -> None:
    async with open_wire(HttpLimits()) as wire:
        _, writer = await wire.connect(get("/deserted") + get("/"))
        await wire.until(lambda: wire.held == 1)
        writer.transport.abort()
        await wire.until(lambda: wire.deserted == 1)


async def test_busy_server_answers_only_health() -> None:
    async with open_wire(HttpLimits(max_connections=2, reserve=1, header_timeout_s=PATIENCE_S)) as wire:
        busy = [await wire.connect(get("/held")) for _ in range(2)]
        await wire.until(lambda: wire.held == 2)
        for path, status in (("/health/live", b"200"), ("/", b"503"), ("/health/ready", b"200")):
            reader, writer = await wire.connect(get(path))
            async with asyncio.timeout(PATIENCE_S):
                answer = await reader.read()  # and the connection is closed
            writer.close()
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"connection: close" in answer.lower()
            if status == b"503":
                assert b'"code":"too_many_connections"' in answer
                assert b"retry-after: " in answer.lower()
            await wire.until(lambda: wire.connections == 2)
        wire.gate.set()
        assert [await reader.readline() for reader, _ in busy] == [b"HTTP/1.1 200 OK\r\n"] * 2


async def test_connections_beyond_reserve_are_dropped() -> None:
    async with open_wire(HttpLimits(max_connections=1, reserve=1, header_timeout_s=PATIENCE_S)) as wire:
        await wire.connect(get("/held"))
        await wire.until(lambda: wire.held == 1)
        upload = b"POST /health/live HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n"
        await wire.connect(upload)  # keeps the reserve busy as long as a slow body may
        await wire.until(lambda: wire.connections == 2)
        reader, _ = await wire.connect()
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        assert wire.count("dropped") == 1


async def test_drain_closes_answered_connections() -> None:
    async with open_wire(HttpLimits(header_timeout_s=PATIENCE_S)) as wire:
        held, _ = await wire.connect(get("/held"))
        await wire.until(lambda: wire.held == 1)
        answered, _ = await wire.connect(get("/"))
        assert await answered.readline() == b"HTTP/1.1 200 OK\r\n"
        idle = [await wire.connect(sent) for sent in (b"", b"GET /ha")]
        await wire.until(lambda: wire.connections == 4)
        wire.server.should_exit = True
        async with asyncio.timeout(PATIENCE_S):
            for reader in (answered, *(reader for reader, _ in idle)):
                await reader.read()  # to its end
            assert wire.connections == 1
            wire.gate.set()
            assert (await held.read()).startswith(b"HTTP/1.1 200 OK\r\n")


POST = b"POST /%b HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n%b"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Capture the log as it is written."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler.formatter, ProcessorFormatter)]
    (handler,) = handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield written
    handler.setStream(before)


@pytest.mark.parametrize("sent", [get("/") * 2, POST % (b"", b"hello"), POST % (b"held", b"hel")], ids=["get", "post", "half"])
@pytest.mark.parametrize(
    ("owner", "where"),
    [
        (HttpProtocol, "request_begun"),
        (RequestParser, "on_url"),
        (RequestParser, "on_header"),
        (HttpProtocol, "head_complete"),
        (HttpProtocol, "_begin"),
        (RequestParser, "_flush_body"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_our_own_fault_is_500_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, log: io.StringIO, owner: type, where: str, sent: bytes
) -> None:
    whole, faults = getattr(owner, where), iter([ZeroDivisionError("confidential")])

    def fails_once(self: HttpProtocol, *arguments: Any, **options: Any) -> Any:
        for fault in faults:
            raise fault
        return whole(self, *arguments, **options)

    monkeypatch.setattr(owner, where, fails_once)
    async with open_wire(HttpLimits(header_timeout_s=PATIENCE_S)) as wire:
        reader, _ = await wire.connect(sent)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        assert wire.count("internal_error") == 1
    assert_internal_error(answer)
    (line,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["level"] == "error"]
    assert line["event"] == "unexpected error"
    assert line["exception"].count("Traceback") == 1
    assert line["exception"].endswith("ZeroDivisionError: confidential")


def assert_internal_error(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\ncontent-type: application/problem+json\r\n" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert b'"code":"internal_error"' in answer
    assert b"confidential" not in answer


async def test_raising_app_gives_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: FastAPI) -> None:
        raise ZeroDivisionError("confidential")

    monkeypatch.setattr(FastAPI, "build_middleware_stack", broken)
    async with open_wire(HttpLimits()) as wire:
        reader, _ = await wire.connect(get("/"))
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
    assert_internal_error(answer)


async def test_probe_overtakes_other_requests() -> None:
    crowd = 100
    async with open_wire(HttpLimits()) as wire:
        peers = [await wire.connect() for _ in range(crowd)]
        reader, probe = await wire.connect()
        for _, writer in peers:
            writer.write(get("/held"))
        probe.write(get("/health/live"))
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"done")
        assert wire.held < crowd / 2
        await wire.until(lambda: wire.held == crowd)


TERSE = Wire(
    "terse",
    (),
    lambda problem, _: Response(f"terse {problem.code}", problem.status),
    health_paths=frozenset({"/v2/live"}),
    prefixes=("/v2",),
)


@pytest.mark.parametrize(("path", "terse"), [("/v2/infer", True), ("/v2", True), ("/v2x", False), ("/", False)])
async def test_refusal_is_rendered_by_its_wire(path: str, terse: bool) -> None:
    limits = HttpLimits(max_connections=1, reserve=1, header_timeout_s=PATIENCE_S)
    async with open_wire(limits, Wires((TERSE, NATIVE))) as wire:
        await wire.connect(get("/held"))
        await wire.until(lambda: wire.held == 1)
        reader, _ = await wire.connect(get(path))
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert (b"terse too_many_connections" in answer) == terse


async def test_health_of_every_wire_uses_the_reserve() -> None:
    limits = HttpLimits(max_connections=1, reserve=1, header_timeout_s=PATIENCE_S)
    async with open_wire(limits, Wires((TERSE, NATIVE))) as wire:
        await wire.connect(get("/held"))
        await wire.until(lambda: wire.held == 1)
        assert await wire.ask("/v2/live") == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(("path", "terse"), [("/v2/infer", True), ("/", False)])
def test_server_error_is_rendered_by_its_wire(path: str, terse: bool) -> None:
    status, _, body = server_error(Wires((TERSE, NATIVE)), path)
    assert (status, body == b"terse internal_error") == (500, terse)

"""Load generator against a small echo server."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import uvloop

from app.bench import connections
from app.bench.connections import Address, Answer, BadAnswer, Connections
from app.bench.load import _PAUSE_S, Exchange, Target, ask, closed_loop, exchange, get, keep_arriving, open_loop


class Echo:
    """Server that echoes bodies, with 500 for `bad`, and counts concurrent requests."""

    def __init__(self) -> None:
        self.port = 0
        self.under_way = self.most_under_way = 0
        self.bodies: list[bytes] = []
        self._started, self._stopping = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))

    def __enter__(self) -> "Echo":
        self._thread.start()
        self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.bodies.append(body)
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                await asyncio.sleep(0.002)
                self.under_way -= 1
                status = b"500 Oh" if body == b"bad" else b"200 OK"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, length, body))
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as echo:
        yield echo


def target(echo: Echo, *bodies: bytes) -> Target:
    return Target(echo.port, "/", bodies, "text/plain")


def test_bodies_and_answers_match(echo: Echo) -> None:
    assert ask(target(echo, b"one", b"two", b"bad")) == [(200, b"one"), (200, b"two"), (500, b"bad")]


def test_closed_loop_limits_concurrency(echo: Echo) -> None:
    load = closed_loop(target(echo, b"one", b"two"), clients=3, seconds=0.3, warm_up_s=0.1)
    assert echo.most_under_way == 3
    assert load.errors == 0
    assert 0 < load.throughput * 0.3 <= len(echo.bodies)
    assert 0.002 <= load.p50 <= load.p95 <= load.p99
    assert set(echo.bodies) == {b"one", b"two"}


def test_open_loop_ignores_failures(echo: Echo) -> None:
    load = open_loop(target(echo, b"one", b"bad"), rate=200, seconds=0.5)
    assert len(echo.bodies) == pytest.approx(100, abs=40)  # Poisson: four deviations
    assert load.errors == len(echo.bodies) // 2
    assert load.throughput < 200


def test_dead_server_is_an_error() -> None:
    with Echo() as echo:
        port = echo.port
    assert open_loop(Target(port, "/", [b"one"], "text/plain"), rate=50, seconds=0.1).throughput == 0


def test_refused_client_pauses() -> None:
    with Echo() as echo:
        port = echo.port
    load = closed_loop(Target(port, "/", [b"one"], "text/plain"), clients=1, seconds=0.5, warm_up_s=0)
    assert 1 <= load.errors <= 0.5 / _PAUSE_S + 1


async def test_latency_counts_from_the_due_time(echo: Echo) -> None:
    exchanges: list[Exchange] = []
    due = time.perf_counter() - 1000
    pool, requests = Connections(Address(echo.port), timeout_s=9000), itertools.cycle(target(echo, b"one").requests())
    await keep_arriving(pool, requests, iter([due, due + 1]), exchanges.append)
    pool.close()
    assert [each.outcome for each in exchanges] == ["200", "200"]
    assert min(each.latency_s for each in exchanges) >= 999
    assert min(each.lateness_s for each in exchanges) >= 999


async def test_timeout_counts_from_the_due_time(echo: Echo) -> None:
    """A request that has no place before its time is over is not sent, and the wait is the generator's lateness."""
    with closing(Connections(Address(echo.port), limit=1, timeout_s=5)) as pool:
        (request,) = target(echo, b"one").requests()
        found = await exchange(pool, request, time.perf_counter() - 6)
        assert (found.outcome, echo.bodies) == ("TimeoutError", [])
        assert found.lateness_s >= 6
        due = time.perf_counter()
        first, second = await asyncio.gather(exchange(pool, request, due), exchange(pool, request, due))
        assert (first.outcome, second.outcome, pool.waited) == ("200", "200", 1)
        assert second.lateness_s >= 0.002  # while the first one was answered


async def test_wait_for_a_place_can_time_out() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # no answer
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        with closing(Connections(Address(server.sockets[0].getsockname()[1]), limit=1, timeout_s=600)) as pool:
            first = asyncio.create_task(exchange(pool, get("/"), time.perf_counter()))
            await asyncio.sleep(0)
            found = await exchange(pool, get("/"), time.perf_counter() - 599.8)
            first.cancel()
    assert found.outcome == "TimeoutError"
    assert 599.8 <= found.lateness_s < 1000


async def answer_to(raw: bytes, monkeypatch: pytest.MonkeyPatch, *, close: bool = False, timeout_s: float = 60) -> str:
    """Return the outcome of a request that is answered with these bytes."""
    return (await exchange_with(raw, monkeypatch, close=close, timeout_s=timeout_s)).outcome


async def exchange_with(
    raw: bytes, monkeypatch: pytest.MonkeyPatch, *, close: bool = False, timeout_s: float = 60, head_bytes: int = 500
) -> Exchange:

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        if close:
            writer.close()
        await reader.read()  # until the generator closes
        writer.close()

    monkeypatch.setattr(connections, "_ANSWER_BYTES", 10_000)
    monkeypatch.setattr(connections, "_HEAD_BYTES", head_bytes)
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        pool = Connections(Address(server.sockets[0].getsockname()[1]), timeout_s=timeout_s)
        found = await exchange(pool, get("/"), time.perf_counter())
        pool.close()
    return found


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 2000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + b"a" * 2000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"a" * 2000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"a" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
    ids=["no-http", "endless-header", "large-header", "large-trailer", "large-body", "endless-chunks", "upgrade"],
)
async def test_bad_answers_are_errors(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await answer_to(raw, monkeypatch) == BadAnswer.__name__


async def test_beginning_of_a_body_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = b"".join(b"2\r\n%d\r\n" % number for number in range(10, 99)) + b"BB8\r\n" + b"z" * 3000 + b"\r\n0\r\n\r\n"
    found = await exchange_with(b"HTTP/1.1 503 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, monkeypatch)
    assert found.refusal == b"".join(b"%d" % number for number in range(10, 99)) + b"z" * (2000 - 2 * 89)


async def test_kept_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []

    def answer(status: int, body: bytes, *_: object) -> Answer:
        kept.append(body)
        return Answer(status, body, "")

    monkeypatch.setattr(connections, "Answer", answer)
    assert await answer_to(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"a" * 9000, monkeypatch) == "200"
    assert kept == [b"a" * 2000]


async def test_end_of_the_connection_ends_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may have no length (RFC 9112, 6.3), unless its connection ends within the head."""
    found = await exchange_with(b"HTTP/1.1 503 Oh\r\nServer: x\r\n\r\nbusy", monkeypatch, close=True)
    assert (found.outcome, found.refusal) == ("503", b"busy")
    for half in (b"", b"HTTP/1.1 200 OK\r\nSer", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na"):
        assert await answer_to(half, monkeypatch, close=True) == "ConnectionResetError"


async def test_missing_answers_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    assert await answer_to(half, monkeypatch, close=True) == "ConnectionResetError"
    assert await answer_to(half, monkeypatch, timeout_s=0.5) == "TimeoutError"


async def test_answer_follows_a_provisional_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    assert await answer_to(raw, monkeypatch) == "201"


async def test_late_answer_is_not_the_next_ones() -> None:
    """After a timeout the connection is not used again."""
    arrived = itertools.count(1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(arrived)
        while await reader.read(1000):
            if number > 1:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with closing(Connections(Address(port), limit=1, timeout_s=1)) as pool:
            with pytest.raises(TimeoutError):
                await pool.send(get("/"))
            assert (await pool.send(get("/"))).body == b"2"

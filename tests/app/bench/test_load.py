"""Load generator against a small echo server."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import uvloop

from app.bench.load import Target, ask, closed_loop, open_loop


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

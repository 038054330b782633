"""A load generator: closed loop (so many clients, each waiting for its answer) and open loop (so many requests a second).

It keeps its connections, sends bodies that were made before, and parses with httptools, so that it needs far less of a core
than what it measures: `Load.generator_share` says how much. Latencies of an open loop count from when a request was due,
whether or not it could be sent then: waiting is part of what a caller sees.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import httptools
import uvloop

_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send what."""

    port: int
    path: str
    bodies: Sequence[bytes]
    content_type: str

    def requests(self) -> list[bytes]:
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: {self.content_type}\r\n"
        return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in self.bodies]


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it. Times in seconds."""

    offered: str
    throughput: float
    """Requests answered with 200, a second."""
    p50: float
    p95: float
    p99: float
    errors: int
    """Requests that were answered otherwise, or not at all."""
    generator_share: float
    """Of one core, that this process used meanwhile."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def closed_loop(target: Target, clients: int, seconds: float, warm_up_s: float) -> Load:
    """`clients` callers, each sending when it has its answer; what ends after the warm-up counts."""
    return uvloop.run(_closed_loop(target, clients, seconds, warm_up_s))


def open_loop(target: Target, rate: float, seconds: float, seed: int = 0) -> Load:
    """Callers who know nothing of each other: `rate` a second, at random (Poisson). All are waited for."""
    return uvloop.run(_open_loop(target, rate, seconds, seed))


def ask(target: Target) -> list[tuple[int, bytes]]:
    """Every body once, one after another: status and body of the answers."""
    return uvloop.run(_ask(target))


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept; one request at a time."""

    def __init__(self) -> None:
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, but does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError())

    @property
    def usable(self) -> bool:
        return self._transport is not None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        if self._transport is None:
            raise ConnectionResetError
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(_PATIENCE_S):
            return await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Connections:
    """Idle connections to one port; more are opened when all are in use."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    async def send(self, request: bytes) -> tuple[int, bytes]:
        connection = await self._take()
        answer = await connection.send(request)
        self._idle.append(connection)
        return answer

    async def _take(self) -> _Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class _Record:
    """Latencies and failures of what ended after a moment."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()

    async def one(self, connections: _Connections, request: bytes, due: float) -> None:
        try:
            status, _ = await connections.send(request)
            failure = None if status == 200 else str(status)
        except (OSError, TimeoutError) as error:
            failure = type(error).__name__
        now = time.perf_counter()
        if now < self.since:
            return
        if failure is None:
            self.latencies.append(now - due)
        else:
            self.errors[failure] += 1

    def load(self, offered: str, seconds: float, cpu_s: float) -> Load:
        if len(self.latencies) < 2:
            nan = float("nan")
            return Load(offered, len(self.latencies) / seconds, nan, nan, nan, self.errors.total(), cpu_s / seconds)
        cuts = statistics.quantiles(self.latencies, n=100, method="inclusive")
        p50, p95, p99 = cuts[49], cuts[94], cuts[98]
        return Load(offered, len(self.latencies) / seconds, p50, p95, p99, self.errors.total(), cpu_s / seconds)


async def _closed_loop(target: Target, clients: int, seconds: float, warm_up_s: float) -> Load:
    connections, requests = _Connections(target.port), itertools.cycle(target.requests())
    began = time.perf_counter()
    record, end = _Record(began + warm_up_s), began + warm_up_s + seconds

    async def client(requests: Iterator[bytes]) -> None:
        while (due := time.perf_counter()) < end:
            await record.one(connections, next(requests), due)

    callers = [asyncio.create_task(client(requests)) for _ in range(clients)]
    await asyncio.sleep(warm_up_s)
    cpu_s = time.process_time()
    await asyncio.sleep(end - time.perf_counter())
    load = record.load(f"{clients} clients", seconds, time.process_time() - cpu_s)
    await asyncio.gather(*callers)
    connections.close()
    return load


async def _open_loop(target: Target, rate: float, seconds: float, seed: int) -> Load:
    connections, requests, rng = _Connections(target.port), itertools.cycle(target.requests()), random.Random(seed)
    began, cpu_s = time.perf_counter(), time.process_time()
    record, due, under_way = _Record(began), began, []
    while (due := due + rng.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(record.one(connections, next(requests), due)))
    await asyncio.gather(*under_way)
    took = time.perf_counter() - began
    connections.close()
    return record.load(f"{rate:.1f}/s", took, time.process_time() - cpu_s)


async def _ask(target: Target) -> list[tuple[int, bytes]]:
    connections = _Connections(target.port)
    answers = [await connections.send(request) for request in target.requests()]
    connections.close()
    return answers

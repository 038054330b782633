"""Load generator with a closed loop (clients that wait for their answers) and an open loop (requests at a rate).

Connections are kept, bodies are prepared, and httptools parses the answers, so that the generator needs far less of a core than
the server: `Load.generator_share` says how much. Latencies of an open loop count from the due time of a request, so a late
generator makes the server look slower, never faster.
"""

import asyncio
import itertools
import random
import socket
import statistics
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import httptools
import uvloop

_TIMEOUT_S = 120.0
_IDLE_S = 4.0
"""Longest idle time of a connection; uvicorn closes it after 5 s, and a request sent at that moment is lost."""


@dataclass(frozen=True, slots=True)
class Target:
    """Address and bodies of requests."""

    port: int
    path: str
    bodies: Sequence[bytes]
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def requests(self) -> list[bytes]:
        more = "".join(f"\r\n{name}: {value}" for name, value in self.headers.items())
        return [head(self.path, len(body), self.content_type + more) + body for body in self.bodies]


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP answer."""

    status: int
    body: bytes
    retry_after: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Request with its outcome. Times are of `time.perf_counter`, which all processes share."""

    due: float
    ended: float
    outcome: str
    """Status of the answer, or name of the error."""
    retry_after: str = ""

    @property
    def latency_s(self) -> float:
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Exchanges of an open loop."""

    exchanges: Sequence[Exchange]
    lateness_s: Sequence[float]
    """Delay of the generator for each request."""
    seconds: float
    """Seconds from the first request to the last answer."""
    cpu_s: float
    most_connections: int


@dataclass(frozen=True, slots=True)
class Load:
    """Summary of a loop, times in seconds."""

    offered: str
    throughput: float
    """Answers with 200 a second."""
    p50: float
    p95: float
    p99: float
    errors: int
    """Requests with another answer or none."""
    generator_share: float
    """Share of one core that this process used."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def closed_loop(target: Target, clients: int, seconds: float, warm_up_s: float) -> Load:
    """Send from `clients` clients that wait for each answer; count answers after the warm-up."""
    return uvloop.run(_closed_loop(target, clients, seconds, warm_up_s))


def open_loop(target: Target, rate: float, seconds: float, seed: int = 0) -> Load:
    """Send `rate` requests a second at random (Poisson), and wait for all answers."""
    found = send_open_loop(target, rate, seconds, seed=seed)
    return _load(f"{rate:.1f}/s", found.exchanges, found.seconds, found.cpu_s)


def send_open_loop(target: Target, rate: float, seconds: float, *, max_connections: int = 10_000, seed: int = 0) -> OpenLoop:
    """Send an open loop; requests above `max_connections` wait for a connection."""
    return uvloop.run(_send_open_loop(target, rate, seconds, max_connections, seed))


def get(path: str) -> bytes:
    """Return a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def head(path: str, length: int | None, content_type: str) -> bytes:
    """Return the head of a POST request; its body is chunked if `length` is None."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


def ask(target: Target) -> list[tuple[int, bytes]]:
    """Send every body once in sequence; return statuses and bodies of the answers."""
    return uvloop.run(_ask(target))


class Connection(asyncio.Protocol):
    """HTTP/1.1 connection for one request at a time, whole or in pieces."""

    def __init__(self) -> None:
        self._answered: asyncio.Future[Answer] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._idle_since = time.perf_counter()
        self._begin()

    @staticmethod
    async def open(port: int) -> "Connection":
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        return connection

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._retry_after = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, but does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._idle_since = time.perf_counter()
        answer = Answer(self._parser.get_status_code(), b"".join(self._body), self._retry_after)
        if not self._parser.should_keep_alive():
            self.close()
        self._begin()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError())

    @property
    def usable(self) -> bool:
        return self._transport is not None and time.perf_counter() - self._idle_since < _IDLE_S

    def expect(self) -> "asyncio.Future[Answer]":
        """Return the future answer to the next request."""
        self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def write(self, data: bytes) -> None:
        """Write to the server; ignored once the connection is lost, which fails the future answer."""
        if self._transport is not None:
            self._transport.write(data)

    async def send(self, request: bytes) -> Answer:
        """Send a whole request, even if the refusal comes first, so that the connection can be reused."""
        if self._transport is None:
            raise ConnectionResetError
        answered = self.expect()
        self.write(request)
        async with asyncio.timeout(_TIMEOUT_S):
            return await answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def reset(self) -> None:
        """Abort with RST, as when a process dies."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
            self._transport = None


class Connections:
    """Pool of connections to one port; at `limit` a request waits."""

    def __init__(self, port: int, limit: int = 10_000) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(limit)
        self._in_use = self.most = 0

    async def send(self, request: bytes) -> Answer:
        """Send a whole request.

        Raises:
            OSError, TimeoutError: no answer came.
        """
        async with self._free:
            self._in_use += 1
            self.most = max(self.most, self._in_use)
            try:
                connection = await self._take()
                answer = await connection.send(request)
            finally:
                self._in_use -= 1
            self._idle.append(connection)
            return answer

    async def _take(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
            connection.close()
        return await Connection.open(self._port)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def exchange(connections: Connections, request: bytes, due: float) -> Exchange:
    """Send a request and return its outcome."""
    try:
        answer = await connections.send(request)
    except (OSError, TimeoutError) as error:
        return Exchange(due, time.perf_counter(), type(error).__name__)
    return Exchange(due, time.perf_counter(), str(answer.status), answer.retry_after)


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def _load(offered: str, exchanges: Sequence[Exchange], seconds: float, cpu_s: float) -> Load:
    latencies = [each.latency_s for each in exchanges if each.outcome == "200"]
    p50, p95, p99 = (quantile(latencies, share) for share in (0.50, 0.95, 0.99))
    return Load(offered, len(latencies) / seconds, p50, p95, p99, len(exchanges) - len(latencies), cpu_s / seconds)


async def _closed_loop(target: Target, clients: int, seconds: float, warm_up_s: float) -> Load:
    connections, requests = Connections(target.port), itertools.cycle(target.requests())
    began = time.perf_counter()
    since, end = began + warm_up_s, began + warm_up_s + seconds
    exchanges: list[Exchange] = []

    async def client() -> None:
        while (due := time.perf_counter()) < end:
            exchanges.append(await exchange(connections, next(requests), due))

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(warm_up_s)
    cpu_s = time.process_time()
    await asyncio.sleep(end - time.perf_counter())
    load = _load(
        f"{clients} clients", [each for each in exchanges if each.ended >= since], seconds, time.process_time() - cpu_s
    )
    await asyncio.gather(*tasks)
    connections.close()
    return load


async def _send_open_loop(target: Target, rate: float, seconds: float, max_connections: int, seed: int) -> OpenLoop:
    connections, requests = Connections(target.port, max_connections), itertools.cycle(target.requests())
    rng, lateness_s = random.Random(seed), []
    began, cpu_s = time.perf_counter(), time.process_time()
    due, under_way = began, []
    while (due := due + rng.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        lateness_s.append(time.perf_counter() - due)
        under_way.append(asyncio.create_task(exchange(connections, next(requests), due)))
    exchanges = await asyncio.gather(*under_way)
    took = time.perf_counter() - began
    connections.close()
    return OpenLoop(exchanges, lateness_s, took, time.process_time() - cpu_s, connections.most)


async def _ask(target: Target) -> list[tuple[int, bytes]]:
    connections = Connections(target.port)
    answers = [await connections.send(request) for request in target.requests()]
    connections.close()
    return [(answer.status, answer.body) for answer in answers]

"""Load generator with a closed loop (clients that wait for their answers) and an open loop (requests at a rate).

Connections are kept, bodies are prepared, and httptools parses the answers, so that the generator needs far less of a core than
the server: `Load.generator_share` says how much. Latencies of an open loop count from the due time of a request, so a late
generator makes the server look slower, never faster.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import uvloop

from app.bench.connections import Address, Connections

_PAUSE_S = 0.05
"""Wait of a client that got no answer: a server that refuses connections would otherwise be asked without pause."""

_REFUSAL_BYTES = 2000
"""Bytes that are kept of an answer with an error."""


@dataclass(frozen=True, slots=True)
class Target(Address):
    """Server with path and bodies of requests."""

    path: str
    bodies: Sequence[bytes]
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def requests(self) -> list[bytes]:
        more = "".join(f"\r\n{name}: {value}" for name, value in self.headers.items())
        return [head(self.path, len(body), self.content_type + more, self.authority) + body for body in self.bodies]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Request with its outcome. Times are of `time.perf_counter`, which all processes share."""

    due: float
    ended: float
    outcome: str
    """Status of the answer, or name of the error."""
    retry_after: str = ""
    server_timing: bytes = b""
    refusal: bytes = b""
    """Beginning of an answer with an error."""
    lateness_s: float = 0.0
    """Seconds from the due time until the request had its connection's place, or until it was given up."""

    @property
    def latency_s(self) -> float:
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Exchanges of an open loop."""

    exchanges: Sequence[Exchange]
    lateness_s: Sequence[float]
    """Delay of the generator for each request, the wait for a place among the connections included."""
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


def get(path: str, host: str = "127.0.0.1") -> bytes:
    """Return a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def head(path: str, length: int | None, content_type: str, host: str = "127.0.0.1") -> bytes:
    """Return the head of a POST request; its body is chunked if `length` is None."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


def ask(target: Target) -> list[tuple[int, bytes]]:
    """Send every body once in sequence; return statuses and bodies of the answers."""
    return uvloop.run(_ask(target))


async def exchange(connections: Connections, request: bytes, due: float) -> Exchange:
    """Send a request and return its outcome."""
    lateness_s: list[float] = []

    def placed() -> None:
        lateness_s.append(time.perf_counter() - due)

    try:
        # whole bodies of thousands of clients would take gigabytes
        answer = await connections.send(request, body_bytes=_REFUSAL_BYTES, due=due, placed=placed)
    except (OSError, TimeoutError) as error:
        ended = time.perf_counter()
        return Exchange(due, ended, type(error).__name__, lateness_s=lateness_s[0] if lateness_s else ended - due)
    ended = time.perf_counter()
    refusal = answer.body if answer.status >= 300 else b""
    return Exchange(due, ended, str(answer.status), answer.retry_after, answer.server_timing, refusal, lateness_s[0])


Observe = Callable[[Exchange], object]

UNANSWERED = "CancelledError"
"""Outcome of a request that was under way when the load was stopped."""


async def _observed(connections: Connections, request: bytes, due: float, observe: Observe) -> Exchange:
    try:
        found = await exchange(connections, request, due)
    except asyncio.CancelledError:
        observe(Exchange(due, time.perf_counter(), UNANSWERED))
        raise
    observe(found)
    return found


async def keep_busy(connections: Connections, requests: Iterator[bytes], clients: int, end: float, observe: Observe) -> None:
    """Send from clients that wait for each answer, until `end`; then wait for the last answers."""

    async def client() -> None:
        while (due := time.perf_counter()) < end:
            found = await _observed(connections, next(requests), due, observe)
            if not found.outcome.isdecimal():
                await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def keep_arriving(connections: Connections, requests: Iterator[bytes], dues: Iterator[float], observe: Observe) -> None:
    """Send a request at each due time, whatever has been answered, and wait for the last answers."""
    async with asyncio.TaskGroup() as group:
        for due in dues:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_observed(connections, next(requests), due, observe))


def arrivals(rate: float, began: float, end: float, seed: int = 0) -> Iterator[float]:
    """Yield the times of random arrivals (Poisson), `rate` a second, between two times."""
    rng, due = random.Random(seed), began
    while (due := due + rng.expovariate(rate)) < end:
        yield due


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
    connections, requests = Connections(target), itertools.cycle(target.requests())
    began = time.perf_counter()
    since, end = began + warm_up_s, began + warm_up_s + seconds
    exchanges: list[Exchange] = []
    sending = asyncio.create_task(keep_busy(connections, requests, clients, end, exchanges.append))
    await asyncio.sleep(warm_up_s)
    cpu_s = time.process_time()
    await asyncio.sleep(end - time.perf_counter())
    load = _load(
        f"{clients} clients", [each for each in exchanges if each.ended >= since], seconds, time.process_time() - cpu_s
    )
    await sending
    connections.close()
    return load


async def _send_open_loop(target: Target, rate: float, seconds: float, max_connections: int, seed: int) -> OpenLoop:
    connections, requests = Connections(target, max_connections), itertools.cycle(target.requests())
    exchanges: list[Exchange] = []
    began, cpu_s = time.perf_counter(), time.process_time()
    dues = arrivals(rate, began, began + seconds, seed)
    await keep_arriving(connections, requests, dues, exchanges.append)
    took = time.perf_counter() - began
    connections.close()
    lateness_s = [each.lateness_s for each in exchanges]
    return OpenLoop(exchanges, lateness_s, took, time.process_time() - cpu_s, connections.most)


async def _ask(target: Target) -> list[tuple[int, bytes]]:
    connections = Connections(target)
    answers = [await connections.send(request) for request in target.requests()]
    connections.close()
    return [(answer.status, answer.body) for answer in answers]

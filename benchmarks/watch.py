"""Watch a server from beside: whether its health is told at once, how much memory it has, what its gauges say."""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from app.bench.connections import Address, Connections
from app.bench.load import Exchange, exchange, get

_PROBE_INTERVAL_S = 0.05
"""Seconds between two probes."""

_SAMPLE_INTERVAL_S = 0.25


_MODEL = re.compile(r'model="[^"]*",?|,model="[^"]*"')


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory in bytes and images in flight at a moment of `time.perf_counter`."""

    at: float
    resident_bytes: int
    accepted: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Health probes and samples over time."""

    live: Sequence[Exchange]
    ready: Sequence[Exchange]
    samples: Sequence[Sample]


def watch(port: int, pid: int, seconds: float) -> Watch:
    """Probe both health routes twenty times a second, and sample memory and queue four times a second."""
    return uvloop.run(_watch(port, pid, seconds))


async def _watch(port: int, pid: int, seconds: float) -> Watch:
    connections = Connections(Address(port))
    end = time.perf_counter() + seconds
    live, ready, samples = await asyncio.gather(
        probe(connections, get("/health/live"), end),
        probe(connections, get("/health/ready"), end),
        _sample(connections, get("/metrics"), pid, end),
    )
    connections.close()
    return Watch(live, ready, samples)


def probe_live(port: int, seconds: float) -> list[Exchange]:
    """Probe `/health/live` twenty times a second. Blocking: run it in a process of its own."""
    return uvloop.run(_probe_live(port, seconds))


async def _probe_live(port: int, seconds: float) -> list[Exchange]:
    connections = Connections(Address(port))
    found = await probe(connections, get("/health/live"), time.perf_counter() + seconds)
    connections.close()
    return found


async def probe(connections: Connections, request: bytes, end: float) -> list[Exchange]:
    """Send requests at a steady rate until `end`, without waiting for answers."""
    due, under_way = time.perf_counter(), []
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(exchange(connections, request, due)))
        due += _PROBE_INTERVAL_S
    return await asyncio.gather(*under_way)


async def _sample(connections: Connections, request: bytes, pid: int, end: float) -> list[Sample]:
    samples = []
    while time.perf_counter() < end:
        answer = await connections.send(request)
        accepted = metrics_of(answer.body).get("vit_inflight_images", 0.0)
        samples.append(Sample(time.perf_counter(), resident_bytes(pid), accepted))
        await asyncio.sleep(_SAMPLE_INTERVAL_S)
    return samples


@dataclass(frozen=True, slots=True)
class Usage:
    """Total resources of several processes."""

    resident_bytes: int
    open_files: int
    threads: int


def usage(pids: Iterable[int]) -> Usage:
    """Return the total usage of living processes."""
    pids = list(pids)
    files, threads = (sum(len(list(Path(f"/proc/{pid}/{what}").iterdir())) for pid in pids) for what in ("fd", "task"))
    return Usage(sum(map(resident_bytes, pids)), files, threads)


def metrics_of(text: bytes) -> dict[str, float]:
    """Parse Prometheus' text into values by name and labels, without the label `model`."""
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if line[:1] != "#")
    return {_MODEL.sub("", name).replace("{}", ""): float(value) for name, _, value in lines}


def resident_bytes(pid: int) -> int:
    """Return the anonymous resident memory of a process; mapped files come and go with the page cache."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

"""Measurement of a service, level by level."""

import asyncio
import itertools
import resource
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from app.bench.connections import Address, Connection, Connections
from app.bench.load import Target, arrivals, keep_arriving, keep_busy
from app.bench.record import Level, LevelResult, Record, summarize
from app.bench.server_metrics import Batches, MetricsMissing, read_batches
from app.errors import StartError

_LOOK_S = 0.5
_OTHER_FILES = 64
"""Files of this process that are not connections."""

_CONNECT_S = 10.0
_LAST_READING_S = 1.0
"""Seconds in which the metrics are read once the user wants to end."""

Found = TypeVar("Found")
Place = TypeVar("Place", bound=Address)


class View(Protocol):
    """Display of a measurement for its user."""

    def look(self, level: Level, record: Record) -> None:
        """Show a level under way; called twice a second."""

    def finish(self, result: LevelResult) -> None:
        """Show a level that is done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Measurement to make: all levels, one after the other."""

    target: Target
    metrics_path: str
    levels: Sequence[Level]
    seconds: float
    """Seconds of each level that are measured."""
    warm_up_s: float
    """Seconds of load before them."""
    timeout_s: float
    """Seconds in which one request is answered, or fails."""


async def reach(addresses: Sequence[Place]) -> Place:
    """Return the first address where a server accepts a connection.

    Raises:
        StartError: none of them does.
    """
    reason = ""
    for address in addresses:
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = await Connection.open(address)
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or "no answer in 10 s"
        else:
            connection.close()
            return address
    raise StartError(f"{addresses[0].authority} cannot be reached: {reason}")


async def unless_stopped(work: Coroutine[Any, Any, Found], stopping: asyncio.Event) -> Found | None:
    """Return the result of some work; None if `stopping` is set first, which cancels the work."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.wait({working, waiting})


async def measure(plan: Plan, stopping: asyncio.Event, view: View) -> list[LevelResult]:
    """Measure all levels; once `stopping` is set, return what has been measured until then."""
    results = []
    for level in plan.levels:
        if not stopping.is_set() and (result := await _Measurement(plan, level, stopping, view).run()):
            results.append(result)
            view.finish(result)
    return results


class _Measurement:
    """Measurement of one level."""

    def __init__(self, plan: Plan, level: Level, stopping: asyncio.Event, view: View) -> None:
        self._plan, self._level, self._stopping, self._view = plan, level, stopping, view
        self._connections = Connections(plan.target, most_connections(), plan.timeout_s)
        self._began = time.perf_counter()
        since = self._began + plan.warm_up_s
        self._record = Record(since, since + plan.seconds)
        self._readings: list[Batches] = []
        self._missing = ""

    async def run(self) -> LevelResult | None:
        """Return the summary; None if the warm-up was not over."""
        sending = asyncio.create_task(self._send())
        try:
            await self._wait(self._record.since)
            if self._stopping.is_set():
                return None
            cpu_s = time.process_time()
            await self._read_metrics()
            await self._wait(self._record.end)
            self._record.end = min(self._record.end, time.perf_counter())
            cpu_s = time.process_time() - cpu_s
            await self._read_metrics()
            while not (sending.done() or self._stopping.is_set()):
                self._view.look(self._level, self._record)
                await asyncio.wait({sending}, timeout=_LOOK_S)
            if sending.done():
                sending.result()  # raises what is a bug
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            self._connections.close()
        return self._summary(cpu_s)

    def _summary(self, cpu_s: float) -> LevelResult:
        mean_batch = self._mean_batch()  # first: it may find that the metrics are of no use
        return summarize(
            self._level,
            self._record,
            cpu_s,
            mean_batch=mean_batch,
            metrics_missing=self._missing,
            full_at=self._connections.limit if self._connections.waited else 0,
        )

    async def _send(self) -> None:
        requests, record = itertools.cycle(self._plan.target.requests()), self._record
        if self._level.clients:
            await keep_busy(self._connections, requests, self._level.clients, record.end, record.add)
        else:
            dues = arrivals(self._level.rate, self._began, record.end)
            await keep_arriving(self._connections, requests, dues, record.add)

    async def _wait(self, until: float) -> None:
        while (left_s := until - time.perf_counter()) > 0 and not self._stopping.is_set():
            self._view.look(self._level, self._record)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(left_s, _LOOK_S))

    async def _read_metrics(self) -> None:
        if self._missing:
            return
        work = read_batches(self._plan.target, self._plan.metrics_path)
        reading: Batches | None
        try:
            if self._stopping.is_set():
                reading = await asyncio.wait_for(work, _LAST_READING_S)
            else:
                reading = await unless_stopped(work, self._stopping)
        except (MetricsMissing, TimeoutError) as error:
            self._missing = str(error) or f"{self._plan.metrics_path} gave no answer before the end"
            return
        if reading is None:
            self._missing = "they were being read when the measurement was ended"
        else:
            self._readings.append(reading)

    def _mean_batch(self) -> float | None:
        if self._missing:
            return None
        before, after = self._readings
        try:
            return after.mean_since(before)
        except MetricsMissing as missing:
            self._missing = str(missing)
            return None


def most_connections() -> int:
    """Return how many connections this process may have; more would fail, and not by the service's fault."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if soft == resource.RLIM_INFINITY else max(1, min(10_000, soft - _OTHER_FILES))

"""Connections: all connections of a server, with eviction of idle ones and regular inspection of slow ones."""

import asyncio
from collections.abc import Callable, Set
from typing import Protocol

from app.http.limits import HttpLimits
from app.http.time_slices import Starts, TimeSlices
from app.metrics import Metrics

RawResponse = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


class Inspected(Protocol):
    """A connection, as far as `Connections` knows it."""

    def inspect(self, now: float) -> None:
        """Close the connection if its peer is too slow."""

    def evict(self) -> None:
        """Close the connection; no response is awaited on it."""


class Connections:
    """The open connections of one server.

    Idle connections have no request in flight: their peers have sent nothing, part of a header, or more after their last
    response. When there is no room they are evicted, the oldest first, so that a flood of silent connections displaces itself
    and not the clients with requests.

    Args:
        limits: limits of each connection and of their number.
        metrics: metrics of the service.
        health_paths: paths that are answered on any connection, and first.
        server_error: response for an application that raised before it answered, by path.
        slices: time slices of the event loop, shared with the application.
    """

    def __init__(
        self,
        limits: HttpLimits,
        metrics: Metrics,
        *,
        health_paths: Set[str],
        server_error: Callable[[str], RawResponse],
        slices: TimeSlices,
    ) -> None:
        self.limits = limits
        self.keep_alive_s = limits.keep_alive_s
        self.health_paths = health_paths
        self.server_error = server_error
        self.slices = slices
        self.starts = Starts()
        self._metrics = metrics
        self._open: set[Inspected] = set()
        self._idle: dict[Inspected, None] = {}  # in the order in which they became idle
        self._timer: asyncio.TimerHandle | None = None
        metrics.gauge("vit_http_connections", "Open connections.", lambda: len(self._open))

    def count(self, reason: str) -> None:
        """Count a request or connection that was refused before the application saw it, by one of a few reasons."""
        self._metrics.http_refused.labels(reason).inc()

    def admit(self, connection: Inspected) -> bool:
        """Add a connection, evicting an idle one if necessary. Returns False if all are busy and this one is of the reserve."""
        if len(self._open) >= self.limits.max_connections:
            oldest = next(iter(self._idle), None)
            if oldest is not None:
                self.count("evicted")
                self.remove(oldest)
                oldest.evict()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._inspect_all)
        admitted = len(self._open) < self.limits.max_connections
        self._open.add(connection)
        self._idle[connection] = None
        return admitted

    def full(self) -> bool:
        """Return True if the reserve is used up too and no connection is idle."""
        return len(self._open) >= self.limits.max_connections + self.limits.reserve and not self._idle

    def mark_busy(self, connection: Inspected) -> None:
        """Protect the connection from eviction."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: Inspected) -> None:
        """Let the connection be evicted."""
        if connection in self._open:
            self._idle[connection] = None

    def remove(self, connection: Inspected) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    @property
    def _interval_s(self) -> float:
        return max(0.01, min(1.0, self.limits.header_timeout_s / 4, self.limits.keep_alive_s / 4))

    def drain(self) -> None:
        """Close answered connections as soon as they are idle, from now on."""
        self.keep_alive_s = 0
        if self._timer is not None:
            self._timer.cancel()
            self._inspect_all()

    def _inspect_all(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.inspect(now)
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._inspect_all)

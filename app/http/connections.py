"""All connections of a server together: how many there may be, who makes room, and who has been slow for too long."""

import asyncio
import resource
from dataclasses import dataclass
from typing import Protocol

from app.errors import StartError
from app.http.turns import Starts, Turns
from app.metrics import Metrics

_OTHER_DESCRIPTORS = 256
"""Files, pipes and libraries of the process itself, and connections that are just being closed."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one peer may take of the server, beside its images. Times in seconds."""

    max_connections: int = 512
    """That may bring requests."""
    reserve: int = 32
    """More, that are asked about the service's health alone."""
    header_timeout_s: float = 10
    """From a connection's beginning, the last answer's end or the header's first byte, whichever is last, to its end."""
    keep_alive_s: float = 75
    """Longest time from an answer's end to the first byte of the next request."""
    max_url_bytes: int = 8 * 1024
    """As much as nginx and Apache take."""
    max_header_fields: int = 100
    """As many as Apache takes; a browser behind three proxies sends about 30."""
    max_header_bytes: int = 32 * 1024
    """Of all fields together; as much as nginx takes."""
    max_pipelined: int = 32
    """Requests that wait for the answer to the one before."""
    body_grace_s: float = 10
    """For which a body may come as slowly as it likes; then in the mean at the rate below."""
    min_body_rate: float = 1024
    """Bytes a second: a twentieth of what the first mobile networks had."""
    max_answer_stall_s: float = 30
    """How often a peer has to have read some of its answer, at the same rate."""
    linger_s: float = 2
    """How long a peer may go on sending what nobody reads, so that it can read why; a reset would take that from it."""
    linger_bytes: int = 32 * 1024 * 1024
    """How much of that is thrown away."""
    decoders: int = 0
    """Decoding processes, each with a socket and a piece of memory."""

    @property
    def needed_descriptors(self) -> int:
        """Files that the process may have open with all of these connections."""
        return self.max_connections + self.reserve + 2 * self.decoders + _OTHER_DESCRIPTORS

    def check_descriptors(self) -> None:
        """See to it that the process may open as many files as there can be connections.

        Raises:
            StartError: it may not, and cannot change that.
        """
        needed = self.needed_descriptors
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise StartError(
                f"VIT_MAX_CONNECTIONS: {self.max_connections} connections need {needed} open files, and only {hard} are allowed"
            )
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Connection(Protocol):
    """What is asked of a connection here."""

    def inspect(self, now: float) -> None:
        """End it if its peer has been slow for too long."""

    def evict(self) -> None:
        """Close it; nobody waits for an answer on it."""


class Connections:
    """The open connections of one server.

    `idle` are those without a request in work, in the order in which they became so: their peers have sent nothing, or only
    a part of a header, or go on after their last answer. They give way when there is no room, the oldest first, so that a
    flood of silent connections displaces itself and not the peers that have something to ask.
    """

    def __init__(self, limits: HttpLimits, metrics: Metrics, turns: Turns | None = None) -> None:
        self.limits = limits
        self.keep_alive_s = limits.keep_alive_s
        self.turns = turns or Turns()
        self.starts = Starts()
        self._metrics = metrics
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        metrics.gauge("vit_http_connections", "Open connections.", lambda: len(self._open))

    def count(self, reason: str) -> None:
        """Count a request or a connection that was ended before the application had a say; the reason is one of a few."""
        self._metrics.http_refused.labels(reason).inc()

    def admit(self, connection: Connection) -> bool:
        """Add a connection, if need be in the place of an idle one. False: all are busy, and this one is of the reserve."""
        if len(self._open) >= self.limits.max_connections:
            oldest = next(iter(self._idle), None)
            if oldest is not None:
                self.count("evicted")
                self.remove(oldest)
                oldest.evict()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._inspect_all)
        regular = len(self._open) < self.limits.max_connections
        self._open.add(connection)
        self._idle[connection] = None
        return regular

    def full(self) -> bool:
        """Whether even the reserve is taken, and not one connection is idle."""
        return len(self._open) >= self.limits.max_connections + self.limits.reserve and not self._idle

    def busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def at_rest(self, connection: Connection) -> None:
        if connection in self._open:
            self._idle[connection] = None

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    @property
    def _interval_s(self) -> float:
        return max(0.01, min(1.0, self.limits.header_timeout_s / 4, self.limits.keep_alive_s / 4))

    def drain(self) -> None:
        """Close idle connections that have had an answer, now and from now on: their clients should go elsewhere."""
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

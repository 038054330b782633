"""ClosableConnection: closes so that the peer can still read the last response."""

import math
from enum import Enum, auto
from typing import Any

from app.http.connections import Connections
from app.http.uvicorn_adapter import Connection


class State(Enum):
    """State of a connection's input."""

    IDLE = auto()
    """No request has begun."""
    HEAD = auto()
    BODY = auto()
    DISCARDING = auto()
    """Input is dropped and responses go on, after a refusal, `Connection: close` or too many pipelined requests."""
    LINGERING = auto()
    """Input is dropped until the peer has read the last response."""
    CLOSED = auto()

    def discards(self) -> bool:
        """Return True if input is dropped."""
        return self in (State.DISCARDING, State.LINGERING, State.CLOSED)

    def closes(self) -> bool:
        """Return True if nothing more will be sent."""
        return self in (State.LINGERING, State.CLOSED)


class ClosableConnection(Connection):
    """Connection with a lingering close. Exchanges write and close through it.

    Closing a socket with unread input resets the connection, which destroys a response that the peer has not read yet.
    """

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.all = connections
        self.state = State.IDLE
        self.written_bytes = 0
        self.has_unread_input = False
        self._linger_until = math.inf
        self._linger_bytes = connections.limits.linger_bytes

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.state = State.CLOSED

    def write(self, data: bytes) -> None:
        """Write to the socket, unless it is closing."""
        if not self.transport.is_closing():
            self.written_bytes += len(data)
            self.transport.write(data)

    def is_closing(self) -> bool:
        """Return True after the last response."""
        return self.state.closes() or self.transport.is_closing()

    def close(self) -> None:
        """Close after the response; if the peer is not done sending, linger for a while."""
        if self.is_closing():
            return
        if not (self.has_unread_input or self.pipeline or self.cycle.more_body):
            self.state = State.CLOSED
            self.transport.close()
            return
        self.state = State.LINGERING
        self._linger_until = self.loop.time() + self.all.limits.linger_s
        self.all.mark_idle(self)
        self.transport.write_eof()
        self.flow.resume_reading()

    def discard(self, size: int) -> None:
        """Account for dropped input; read on in the next iteration of the event loop."""
        self.has_unread_input = True
        self.flow.hold()
        self.loop.call_soon(self.flow.release)
        if self.state is State.LINGERING:
            self._linger_bytes -= size
            if self._linger_bytes < 0:
                self.transport.close()

    def inspect(self, now: float) -> None:
        """Close the socket when it has lingered long enough."""
        if now >= self._linger_until:
            self.transport.close()

    def evict(self) -> None:
        """Close at once. With unsent data a close would wait for a peer that does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

"""Pace: how fast the peer of a connection sends and reads. The caller passes the time in, so that tests can move it."""

from dataclasses import dataclass

from app.http.limits import HttpLimits


@dataclass(slots=True)
class SendingPace:
    """Pace of a peer that sends a request."""

    limits: HttpLimits
    since: float
    """Time since which the peer is waited for."""
    body_bytes: int = 0

    def restart(self, now: float) -> None:
        """Wait for the peer anew from now on."""
        self.since, self.body_bytes = now, 0

    def waited_s(self, now: float) -> float:
        """Return the seconds that the peer has been waited for."""
        return now - self.since

    def is_body_too_slow(self, now: float) -> bool:
        """Return True if less of the body has arrived than the minimum rate demands after the grace time."""
        return self.body_bytes < (self.waited_s(now) - self.limits.body_grace_s) * self.limits.min_body_rate


@dataclass(slots=True)
class ReadingPace:
    """Pace of a peer that reads responses."""

    limits: HttpLimits
    _checkpoint: tuple[float, int] | None = None
    """Time, and bytes read by then, from which progress is measured."""

    def is_too_slow(self, now: float, written: int, unsent: int) -> bool:
        """Return True if the peer has read too little for a whole period.

        Args:
            now: the time.
            written: bytes written to the connection so far.
            unsent: bytes of these that are still buffered.
        """
        read = written - unsent
        if not unsent:
            self._checkpoint = None
        elif self._checkpoint is None:
            self._checkpoint = now, read
        elif now - self._checkpoint[0] >= self.limits.max_answer_stall_s:
            progress = read - self._checkpoint[1]
            self._checkpoint = now, read
            return progress < self.limits.min_body_rate * self.limits.max_answer_stall_s
        return False

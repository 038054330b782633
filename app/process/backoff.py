"""Backoff: pauses before something that has failed is started again."""

import time

_BACKOFF_S = (0.02, 5.0)
"""First and longest pause before a start; each failure in a row doubles it."""


class Backoff:
    """Exponential pause before the next start.

    Args:
        longest_s: longest pause. Default: a few seconds.
    """

    def __init__(self, longest_s: float | None = None) -> None:
        self._longest_s = longest_s
        self.failures = 0
        """Failures since the last success."""
        self._until = 0.0

    def fail(self, *, pause: bool = True) -> float:
        """Count a failure, and lengthen the pause. Returns the pause in seconds."""
        first, longest = _BACKOFF_S
        pause_s = min(self._longest_s or longest, first * 2 ** min(self.failures, 64)) if pause else 0.0
        self.failures += 1
        self._until = max(self._until, time.monotonic() + pause_s)
        return pause_s

    def reset(self) -> None:
        """Forget all failures."""
        self.failures, self._until = 0, 0.0

    @property
    def remaining_s(self) -> float:
        """Rest of the pause."""
        return max(0.0, self._until - time.monotonic())

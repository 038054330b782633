"""Tries of one call: how long each may take, and whether and when there is another. Nothing here waits."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from vit_serve_client.errors import ConnectionFailed, Timeout, VitError

RETRIED_STATUSES = frozenset({429, 502, 503})
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """Sources of time and chance; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    """Seconds since the epoch, for dates in headers."""
    random: Callable[[], float] = random.random


def is_retried(error: VitError) -> bool:
    """Tell whether another try may help. Classification has no side effects, so that a broken one can be sent again."""
    return isinstance(error, ConnectionFailed) or error.status in RETRIED_STATUSES


def back_off_s(retry: int, chance: float) -> float:
    """Return seconds before a retry, counted from 0, where the service names none: a random part of a doubling time."""
    return chance * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(retry, 10))


class Tries:
    """Tries of one call, which share one deadline."""

    def __init__(self, timeout_s: float, max_retries: int, clocks: Clocks) -> None:
        self._clocks = clocks
        self._timeout_s = timeout_s
        self._end = clocks.monotonic() + timeout_s
        self._retries_left = max_retries
        self._retries = 0

    def left_s(self) -> float:
        """Return the seconds that are left for a try.

        Raises:
            Timeout: there are none.
        """
        left_s = self._end - self._clocks.monotonic()
        if left_s <= 0:
            raise self.timeout()
        return left_s

    def timeout(self) -> Timeout:
        """Return the error of a deadline that has passed."""
        return Timeout(f"There was no answer within {self._timeout_s:g} s.")

    def wait_s(self, error: VitError) -> float:
        """Return the seconds to wait after an error before another try.

        Raises:
            VitError: the error itself, where there is to be no other try.
        """
        if self._retries_left <= 0 or not is_retried(error):
            raise error
        wait_s = back_off_s(self._retries, self._clocks.random()) if error.retry_after is None else error.retry_after
        if wait_s >= self._end - self._clocks.monotonic():
            raise error  # waiting would end in a timeout, which says less
        self._retries_left -= 1
        self._retries += 1
        return wait_s

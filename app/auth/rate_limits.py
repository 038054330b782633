"""RateLimit: how many requests one caller may send in a time, in fixed windows and in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from limits import parse_many
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from app.errors import RateLimited

_MAX_CALLERS = 50_000
"""Callers that one limit remembers, in about 15 MB; one more makes it forget the one whose window ends next."""

Clock = Callable[[], float]


class RateLimit:
    """One limit or several, each for every caller: `10/second;1000/hour`.

    A caller's window begins with its first request and ends after the limit's time, whatever comes in between: what was
    refused does not count, and after the seconds that a refusal names the whole number is free again. So there can be up
    to twice as many requests around the end of a window.

    Args:
        notation: in the words of the library `limits`.
        clock: seconds that only grow.
    """

    def __init__(self, notation: str, clock: Clock = time.monotonic, max_callers: int = _MAX_CALLERS) -> None:
        self._notation = notation
        self._clock = clock
        self._limits = [(item, FixedWindowRateLimiter(Windows(clock, max_callers))) for item in parse_many(notation)]

    def take(self, caller: str) -> None:
        """Count one more request.

        Raises:
            RateLimited: there were as many as may be; this one was not counted.
        """
        stats = [limiter.get_window_stats(item, caller) for item, limiter in self._limits]
        full_until = [window.reset_time for window in stats if window.remaining == 0]
        if full_until:
            raise RateLimited(f"No more than {self._notation} requests are taken.", max(full_until) - self._clock())
        for item, limiter in self._limits:
            limiter.hit(item, caller)


class Windows(Storage):
    """Counters that end, at most so many of them.

    The library's own storage in memory has no bound, and looks at every counter after every request. Here all windows are
    equally long, so that they end in the order in which they began, and what has ended is found at the front.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock, max_windows: int) -> None:
        super().__init__()
        self._clock = clock
        self._max_windows = max_windows
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()  # key -> when it ends, how often it was counted

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        ends, counted = self._windows.get(key, (0.0, 0))
        now = self._clock()
        if ends <= now:
            self._windows.pop(key, None)
            self._make_room(now)
            ends, counted = now + expiry, 0
        self._windows[key] = (ends, counted + amount)
        return counted + amount

    def get(self, key: str) -> int:
        ends, counted = self._windows.get(key, (0.0, 0))
        return counted if ends > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        return self._windows.get(key, (self._clock(), 0))[0]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        forgotten = len(self._windows)
        self._windows.clear()
        return forgotten

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _make_room(self, now: float) -> None:
        """Forget two windows that have ended, so that fewer and fewer stay, and one that has not if there are too many."""
        for key in [key for key, (ends, _) in islice(self._windows.items(), 2) if ends <= now]:
            del self._windows[key]
        if len(self._windows) >= self._max_windows:
            self._windows.popitem(last=False)

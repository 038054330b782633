"""RateLimit: requests per client in fixed windows, in bounded memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from app.errors import RateLimited
from app.setting_values import Rate, parse_rates

_MAX_CLIENTS = 50_000
"""Maximum number of clients remembered by each rate, in about 15 MB."""

_NO_WINDOW = (0.0, 0)

Clock = Callable[[], float]


class RateLimit:
    """One or several rates that each client must keep: `10/second;1000/hour`.

    A client's window begins with its first request and ends after the rate's period. Refused requests do not count. Around
    the end of a window there can be up to twice as many requests.

    Args:
        notation: rates as in `parse_rates`.
        clock: seconds that only grow.
    """

    def __init__(self, notation: str, clock: Clock = time.monotonic, max_clients: int = _MAX_CLIENTS) -> None:
        self._notation = notation
        self._clock = clock
        self._rates = [FixedWindows(rate, max_clients) for rate in parse_rates(notation)]

    def take(self, client: str) -> None:
        """Count one more request.

        Raises:
            RateLimited: the client has used up a rate; this request is not counted.
        """
        now = self._clock()
        full_until = max(windows.full_until(client, now) for windows in self._rates)
        if full_until > now:
            raise RateLimited(f"No more than {self._notation} requests are taken.", full_until - now)
        for windows in self._rates:
            windows.count(client, now)


class FixedWindows:
    """The windows of one rate. All are equally long, so that insertion order is the order in which they end.

    One client above the maximum evicts the window that ends first.
    """

    def __init__(self, rate: Rate, max_clients: int) -> None:
        self._rate = rate
        self._max_clients = max_clients
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()  # client -> end of its window, requests in it

    def __len__(self) -> int:
        return len(self._windows)

    def full_until(self, client: str, now: float) -> float:
        """Return the end of the client's window if it is full, else 0."""
        ends, requests = self._windows.get(client, _NO_WINDOW)
        return ends if ends > now and requests >= self._rate.requests else 0.0

    def count(self, client: str, now: float) -> None:
        """Count a request in the client's window, or in a new one."""
        ends, requests = self._windows.get(client, _NO_WINDOW)
        if ends <= now:
            self._windows.pop(client, None)
            self._evict(now)
            ends, requests = now + self._rate.period_s, 0
        self._windows[client] = ends, requests + 1

    def _evict(self, now: float) -> None:
        """Drop up to two windows that have ended, so that their number shrinks, and a current one if there are too many."""
        for client in [client for client, (ends, _) in islice(self._windows.items(), 2) if ends <= now]:
            del self._windows[client]
        if len(self._windows) >= self._max_clients:
            self._windows.popitem(last=False)

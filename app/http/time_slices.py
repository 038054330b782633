"""Time slices: cooperative scheduling of long work on the event loop, and a bound on requests started in one iteration."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work as a generator that yields at least once a millisecond and returns its result."""

_SLICE_S = 0.001

_FIRST_SLICES_S = 0.005
"""Time that the first slices of all work started in one iteration may take together."""

_STARTS = 2
"""Requests started in one iteration; each takes about a millisecond until it first waits."""


class TimeSlices:
    """One queue for all work longer than a slice, so that many clients block the event loop no longer than one.

    Threads would not help: the interpreter releases its lock every 5 ms at the earliest, and never inside one call such as
    `json.loads` of 64 MB.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._left_s = _FIRST_SLICES_S

    async def work(self, steps: Steps[T]) -> T:
        """Run the work to its end and return its result. Cancelling this call ends it between two steps."""
        while True:
            async with self._lock:
                try:
                    _run_slice(steps)
                except StopIteration as done:
                    result: T = done.value
                    return result
                await asyncio.sleep(0)  # the rest of the event loop runs before the next slice

    async def turn(self) -> None:
        """Wait for a turn in the queue and for the next iteration of the event loop."""
        async with self._lock:
            await asyncio.sleep(0)

    def start(self, steps: Steps[None]) -> bool:
        """Run the first slice at once, ahead of the queue, if this iteration has time for it.

        Returns:
            True if the work is done; else `work` does the rest.
        """
        if self._left_s <= 0:
            return False
        if self._left_s == _FIRST_SLICES_S:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        began = time.perf_counter()
        try:
            _run_slice(steps)
        except StopIteration:
            return True
        finally:
            self._left_s -= time.perf_counter() - began
        return False

    def _next_iteration(self) -> None:
        self._left_s = _FIRST_SLICES_S


def _run_slice(steps: Steps[T]) -> None:
    ends = time.perf_counter() + _SLICE_S
    while time.perf_counter() < ends:
        next(steps)


class Starts:
    """Starts requests in the order of their arrival, at most a few in each iteration of the event loop.

    Many requests that are all refused at once would otherwise block the loop for their number.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._left = _STARTS

    def add(self, begin: Callable[[], None]) -> None:
        """Call `begin` now if this iteration has room, else in a later one."""
        if self._left == _STARTS:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        if self._left and not self._waiting:
            self._left -= 1
            begin()
        else:
            self._waiting.append(begin)

    def _next_iteration(self) -> None:
        begin_now = [self._waiting.popleft() for _ in range(min(_STARTS, len(self._waiting)))]
        self._left = _STARTS - len(begin_now)
        if begin_now:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        for begin in begin_now:
            begin()

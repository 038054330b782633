"""Cores that more tasks share than there are, each at the same speed, as a fair scheduler divides them."""

import itertools
from collections.abc import Generator
from heapq import heappop, heappush
from typing import Any

import simpy


class Cores:
    """Processor sharing: with more tasks than cores, each runs at the same part of its speed.

    Time is kept in seconds of work that every task has got since the beginning, so that a task ends at a known point of it
    however many come and go meanwhile.
    """

    def __init__(self, env: simpy.Environment, count: int, others: float = 0.0) -> None:
        self._env = env
        self._count = count
        self._others = others
        self._ends: list[tuple[float, int, simpy.Event]] = []
        self._running: set[simpy.Event] = set()
        self._numbers = itertools.count()
        self._got_s = 0.0
        self._at = 0.0
        self._plan = 0

    def work(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Run a task that would take so long on a core of its own."""
        self._advance()
        done = self._env.event()
        heappush(self._ends, (self._got_s + seconds, next(self._numbers), done))
        self._running.add(done)
        self._replan()
        try:
            yield done
        finally:
            if done in self._running:  # the task was interrupted
                self._advance()
                self._running.remove(done)
                self._replan()

    @property
    def _speed(self) -> float:
        return min(1.0, self._count / max(1.0, len(self._running) + self._others))

    def _advance(self) -> None:
        self._got_s += (self._env.now - self._at) * self._speed
        self._at = self._env.now

    def _replan(self) -> None:
        """Set the time at which the next task ends, as far as is known now."""
        while self._ends and self._ends[0][2] not in self._running:
            heappop(self._ends)
        self._plan += 1
        if not self._ends:
            return
        plan, wait_s = self._plan, max(0.0, self._ends[0][0] - self._got_s) / self._speed

        def end(_: simpy.Event) -> None:
            if plan == self._plan:
                self._end_first()

        wake = self._env.timeout(wait_s)
        assert wake.callbacks is not None
        wake.callbacks.append(end)

    def _end_first(self) -> None:
        self._advance()
        end, _, done = heappop(self._ends)
        self._got_s = max(self._got_s, end)  # not less by rounding
        self._running.remove(done)
        done.succeed()
        self._replan()

"""Counts of a scenario while it runs."""

from collections import Counter
from dataclasses import dataclass

import simpy

ANSWERED, REFUSED, LOST, EXPIRED, UNAVAILABLE = "answered", "refused", "lost", "expired", "unavailable"
"""Outcomes: 200; 429; lost with its replica; 504; 503, as there is no replica."""


class Meter:
    """Mean over time of a number that changes."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.level = 0
        self._area = 0.0
        self._since = self._at = env.now

    def add(self, change: int) -> None:
        """Change the number now."""
        self._area += self.level * (self._env.now - self._at)
        self._at = self._env.now
        self.level += change

    def restart(self) -> None:
        """Begin the mean now."""
        self.add(0)
        self._area, self._since = 0.0, self._env.now

    @property
    def mean(self) -> float:
        """Mean since the beginning."""
        self.add(0)
        seconds = self._env.now - self._since
        return self._area / seconds if seconds else float(self.level)


@dataclass(frozen=True, slots=True)
class Ended:
    """Request that has ended."""

    began: float
    at: float
    outcome: str

    @property
    def latency_s(self) -> float:
        return self.at - self.began


class Tally:
    """Counts of requests and batches, and meters."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.arrived = 0
        self.ended: list[Ended] = []
        self.batches: Counter[int] = Counter()
        """Batches by their number of images."""
        self.requests = Meter(env)
        """Requests under way."""
        self.loops, self.decoders, self.engines, self.replicas = (Meter(env) for _ in range(4))
        """Busy event loops, decoders and engines; replicas that run."""

    def begin(self) -> float:
        """Count a request; return its time."""
        self.arrived += 1
        self.requests.add(1)
        return float(self._env.now)

    def end(self, began: float, outcome: str) -> None:
        """Count its outcome."""
        self.requests.add(-1)
        self.ended.append(Ended(began, float(self._env.now), outcome))

    def restart(self) -> None:
        """Begin all means now, and count batches from now on."""
        self.batches.clear()
        for meter in (self.requests, self.loops, self.decoders, self.engines, self.replicas):
            meter.restart()

"""Requests: clients that wait for their answers, or arrivals at a rate."""

import math
from collections.abc import Generator
from random import Random
from typing import Any

import simpy

from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.replica import Steps
from benchmarks.simulation.scenario import Arrivals, Clients, Scenario
from benchmarks.simulation.tally import ANSWERED, EXPIRED, Tally


class Source:
    """Sends requests to a fleet."""

    def __init__(self, env: simpy.Environment, scenario: Scenario, fleet: Fleet, tally: Tally, rng: Random) -> None:
        self._env, self._scenario, self._fleet, self._tally, self._rng = env, scenario, fleet, tally, rng

    def start(self) -> None:
        """Start to send."""
        load = self._scenario.load
        if isinstance(load, Arrivals):
            self._env.process(self._arrive(load))
        else:
            for _ in range(load.number):
                self._env.process(self._client(load))

    def _client(self, load: Clients) -> Steps:
        while True:
            outcome = yield self._request()
            if outcome != ANSWERED:
                yield self._env.timeout(load.pause_s)

    def _arrive(self, load: Arrivals) -> Steps:
        ends = [since for since, _ in load.steps[1:]] + [math.inf]
        for (since, rate), end in zip(load.steps, ends, strict=True):
            yield self._env.timeout(max(0.0, since - self._env.now))
            while (wait_s := self._rng.expovariate(rate)) < end - self._env.now:
                yield self._env.timeout(wait_s)
                self._request()

    def _request(self) -> simpy.Process:
        request = self._env.process(self._exchange())
        if self._scenario.deadline_s < math.inf:
            deadline = self._env.timeout(self._scenario.deadline_s)
            assert deadline.callbacks is not None
            deadline.callbacks.append(lambda _: request.interrupt(EXPIRED) if request.is_alive else None)
        return request

    def _exchange(self) -> Generator[simpy.Event, Any, str]:
        began = self._tally.begin()
        try:
            if self._scenario.proxy_s:
                yield self._env.timeout(self._scenario.proxy_s)
            outcome = yield from self._fleet.serve()
        except simpy.Interrupt as interrupt:
            outcome = str(interrupt.cause)
        self._tally.end(began, outcome)
        return outcome

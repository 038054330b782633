"""Fleet: replicas on machines, the balancer before them, failures and replacements."""

from collections.abc import Generator
from random import Random
from typing import Any

import simpy

from benchmarks.simulation.balancer import BALANCES
from benchmarks.simulation.replica import Machine, Replica, Steps
from benchmarks.simulation.scenario import Drain, Kill, Scenario
from benchmarks.simulation.tally import UNAVAILABLE, Tally


class Fleet:
    """Replicas that run or start."""

    def __init__(self, env: simpy.Environment, scenario: Scenario, tally: Tally, rng: Random) -> None:
        self._env, self._scenario, self._tally, self._rng = env, scenario, tally, rng
        self._choose = BALANCES[scenario.balance](rng)
        self._machines: list[Machine] = []
        self.balanced: list[Replica] = []
        """Replicas that the balancer sends to."""
        self.starting = 0
        for _ in range(scenario.replicas):
            self._join(self._machine())
        for event in scenario.events:
            env.process(self._happen(event))

    @property
    def images(self) -> int:
        """Images in flight in all replicas."""
        return sum(replica.images for replica in self.balanced)

    @property
    def size(self) -> int:
        """Replicas that run or start, without those that drain."""
        return len(self.balanced) + self.starting

    def serve(self) -> Generator[simpy.Event, Any, str]:
        """Serve a request in the process that is running; return the outcome."""
        if not self.balanced:
            return UNAVAILABLE
        outcome: str = yield from self._choose(self.balanced).serve()
        return outcome

    def resize(self, replicas: int) -> None:
        """Start replicas, or drain the youngest."""
        for _ in range(replicas - self.size):
            self.starting += 1
            self._env.process(self._start(self._machine()))
        for replica in self.balanced[max(0, replicas) :] if replicas < self.size else []:
            self._env.process(self._drain(replica))

    def _machine(self) -> Machine:
        """Take a place on a machine, on a new one if all are full."""
        machine = next((each for each in self._machines if each.room), None)
        if machine is None:
            machine = Machine(self._env, self._scenario.machine)
            self._machines.append(machine)
        machine.room -= 1
        return machine

    def _join(self, machine: Machine) -> None:
        self.balanced.append(Replica(self._env, self._scenario.replica, machine, self._tally, self._rng))
        self._tally.replicas.add(1)

    def _start(self, machine: Machine) -> Steps:
        yield self._env.timeout(self._scenario.replica.start_s)
        self.starting -= 1
        self._join(machine)

    def _drain(self, replica: Replica) -> Steps:
        self.balanced.remove(replica)
        replica.drain()
        yield replica.empty
        self._tally.replicas.add(-1)
        replica.machine.room += 1

    def _happen(self, event: Kill | Drain) -> Steps:
        yield self._env.timeout(event.at_s)
        if not self.balanced:
            return
        replica = self.balanced[0]
        if isinstance(event, Kill):
            self.balanced.remove(replica)
            self._tally.replicas.add(-1)
            replica.kill()
            replica.machine.room += 1
        else:
            yield self._env.process(self._drain(replica))
        self.resize(self.size + 1)

"""Run of a scenario, and its summary."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import simpy

from app.bench.load import quantile
from benchmarks.simulation.arrivals import Source
from benchmarks.simulation.autoscaling import autoscale
from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.replica import Steps
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.tally import ANSWERED, Ended, Tally


@dataclass(frozen=True, slots=True)
class Moment:
    """State at one time."""

    at_s: float
    replicas: int
    """Replicas that the balancer sends to."""
    images: int


@dataclass(frozen=True, slots=True)
class Result:
    """Summary of a run; rates, latencies and means are of the time after the warm-up."""

    scenario: Scenario
    arrived: int
    """Requests, those of the warm-up too."""
    under_way: int
    """Requests without an outcome at the end."""
    ended: tuple[Ended, ...]
    """All requests with an outcome."""
    mean_requests: float
    """Requests under way."""
    mean_batch: float
    loops: float
    """Busy part of the event loops, of 1."""
    decoders: float
    engines: float
    """Busy part of batch slots on a CPU, of GPUs otherwise."""
    replicas: float
    """Replicas that run."""
    moments: tuple[Moment, ...]
    """States, one a second."""

    @property
    def counted(self) -> Iterator[Ended]:
        """Requests that ended after the warm-up."""
        return (each for each in self.ended if each.at >= self.scenario.warm_up_s)

    @property
    def outcomes(self) -> Counter[str]:
        """Numbers of requests by outcome."""
        return Counter(each.outcome for each in self.counted)

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return self.outcomes[ANSWERED] / self.scenario.seconds

    def latency_s(self, share: float, since_s: float = 0.0, end_s: float = float("inf")) -> float:
        """Return a quantile of the latencies of answers between two times."""
        times = [each.latency_s for each in self.counted if each.outcome == ANSWERED and since_s <= each.at < end_s]
        return quantile(times, share)


def simulate(scenario: Scenario, seed: int = 0) -> Result:
    """Run a scenario; the same seed gives the same result."""
    env, rng = simpy.Environment(), Random(seed)
    tally = Tally(env)
    fleet = Fleet(env, scenario, tally, rng)
    Source(env, scenario, fleet, tally, rng).start()
    if scenario.autoscaling is not None:
        env.process(autoscale(env, fleet, scenario.autoscaling))
    moments: list[Moment] = []
    env.process(_watch(env, fleet, moments))
    if scenario.warm_up_s:
        env.run(scenario.warm_up_s)
    tally.restart()
    env.run(scenario.warm_up_s + scenario.seconds)
    return _summary(scenario, tally, moments)


def _watch(env: simpy.Environment, fleet: Fleet, moments: list[Moment]) -> Steps:
    while True:
        moments.append(Moment(float(env.now), len(fleet.balanced), fleet.images))
        yield env.timeout(1.0)


def _summary(scenario: Scenario, tally: Tally, moments: list[Moment]) -> Result:
    spec, replicas = scenario.replica, tally.replicas.mean
    engines = spec.engine.slots if spec.engine.independent_streams else 1 / scenario.machine.replicas
    batches = tally.batches.total()
    return Result(
        scenario,
        arrived=tally.arrived,
        under_way=tally.requests.level,
        ended=tuple(tally.ended),
        mean_requests=tally.requests.mean,
        mean_batch=sum(size * count for size, count in tally.batches.items()) / batches if batches else float("nan"),
        loops=tally.loops.mean / replicas if replicas else 0.0,
        decoders=tally.decoders.mean / (replicas * spec.decoders) if replicas else 0.0,
        engines=tally.engines.mean / (replicas * engines) if replicas else 0.0,
        replicas=replicas,
        moments=tuple(moments),
    )

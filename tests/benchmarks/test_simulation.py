"""The simulation against known results of queueing theory, and its failures and autoscaling against what must be."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.simulation.balancer import BALANCES
from benchmarks.simulation.run import Result, simulate
from benchmarks.simulation.scenario import (
    Arrivals,
    Autoscaling,
    Clients,
    Drain,
    Duration,
    EngineSpec,
    Kill,
    MachineSpec,
    ReplicaSpec,
    Scenario,
)
from benchmarks.simulation.scenarios import SCENARIOS
from benchmarks.simulation.table import HEADING, table
from benchmarks.simulation.tally import ANSWERED, EXPIRED, LOST, REFUSED, UNAVAILABLE

NO_ENGINE = EngineSpec(0.0, 0.0, max_batch_size=1, independent_streams=True)
UNBOUNDED = 10**9
RATE = 0.6
"""Arrivals in one mean time of service."""


def queue(decode: Duration, servers: int = 1) -> ReplicaSpec:
    """Return a replica that is nothing but a queue before servers."""
    return ReplicaSpec(decode, servers, NO_ENGINE, max_inflight_images=UNBOUNDED)


def run(replica: ReplicaSpec, load: Clients | Arrivals, **variables: object) -> Result:
    scenario = Scenario("test", replica, load, deadline_s=math.inf, seconds=15_000, warm_up_s=500)
    return simulate(replace(scenario, **variables))  # type: ignore[arg-type]


def mean_latency(result: Result) -> float:
    times = [each.latency_s for each in result.counted]
    return sum(times) / len(times)


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that an arrival has to wait (M/M/c)."""
    waits = load**servers / math.factorial(servers) * servers / (servers - load)
    return waits / (sum(load**k / math.factorial(k) for k in range(servers)) + waits)


@pytest.mark.parametrize("variation", [1.0, 0.0, 0.5], ids=["M/M/1", "M/D/1", "M/G/1"])
def test_one_server_waits_as_known(variation: float) -> None:
    result = run(queue(Duration(1.0, variation)), Arrivals.at(RATE))
    pollaczek_khinchine = 1 + RATE * (1 + variation**2) / (2 * (1 - RATE))
    assert mean_latency(result) == pytest.approx(pollaczek_khinchine, rel=0.07)
    assert result.decoders == pytest.approx(RATE, rel=0.04)


def test_many_servers_wait_as_known() -> None:
    result = run(queue(Duration(1.0, 1.0), servers=4), Arrivals.at(4 * 0.8), seconds=6_000)
    assert mean_latency(result) == pytest.approx(1 + erlang_c(4, 3.2) / (4 - 3.2), rel=0.07)


def test_batches_of_one_are_a_queue() -> None:
    engine = EngineSpec(1.0, 0.0, max_batch_size=1)
    result = run(ReplicaSpec(Duration(0.0), 1, engine, max_inflight_images=UNBOUNDED), Arrivals.at(RATE))
    assert mean_latency(result) == pytest.approx(1 + RATE / (2 * (1 - RATE)), rel=0.07)
    assert result.engines == pytest.approx(RATE, rel=0.04)


@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_shared_core_is_fair(variation: float) -> None:
    replica = queue(Duration(1.0, variation), servers=UNBOUNDED)
    result = run(replica, Arrivals.at(RATE), machine=MachineSpec(cores=1))
    assert mean_latency(result) == pytest.approx(1 / (1 - RATE), rel=0.07)  # M/G/1 with processor sharing, for any variation


def test_more_tasks_than_cores_share_them() -> None:
    machine = MachineSpec(replicas=2, cores=2)
    result = run(queue(Duration(1.0), 4), Clients(8), replicas=2, machine=machine, seconds=1_000)
    assert result.throughput == pytest.approx(2.0, rel=0.01)
    assert result.latency_s(0.5) == pytest.approx(4.0, rel=0.01)


def test_others_take_their_part_of_the_cores() -> None:
    machine = MachineSpec(cores=2, others=3)
    result = run(queue(Duration(1.0)), Clients(1), machine=machine, seconds=1_000)
    assert result.latency_s(0.5) == pytest.approx(2.0)


def test_full_batches_give_the_throughput() -> None:
    engine = EngineSpec(1.0, 0.25, max_batch_size=4)
    replica = ReplicaSpec(Duration(0.0), 1, engine)
    result = run(replica, Clients(32), seconds=1_000)
    assert result.mean_batch == 4
    assert result.throughput == pytest.approx(4 / 2.0, rel=0.01)
    assert result.engines == pytest.approx(1.0)


def test_engine_does_not_idle_beside_a_queue() -> None:
    engine = EngineSpec(1.0, 0.0, max_batch_size=4, slots=2, independent_streams=True)
    result = run(ReplicaSpec(Duration(0.0), 1, engine), Clients(3), seconds=1_000)
    assert result.engines == pytest.approx(1.0)  # both slots, though no batch is ever full
    assert result.mean_batch < 2


def test_gpu_runs_one_batch_at_a_time() -> None:
    engine = EngineSpec(1.0, 0.0, max_batch_size=1, slots=2)
    replica = ReplicaSpec(Duration(0.0), 1, engine)
    result = run(replica, Clients(16), replicas=4, machine=MachineSpec(replicas=4), seconds=1_000)
    assert result.throughput == pytest.approx(1.0, rel=0.01)
    assert result.engines == pytest.approx(1.0)


@pytest.mark.parametrize("balance", BALANCES)
def test_littles_law_and_conservation(balance: str) -> None:
    engine = EngineSpec(0.1, 0.05, max_batch_size=4, slots=2, variation=0.3)
    replica = ReplicaSpec(Duration(0.2, 0.5), 2, engine, loop_s=0.05, max_inflight_images=6, start_s=20)
    events = (Kill(40.0), Drain(80.0), Kill(140.0))
    load, machine = Arrivals.at(45.0), MachineSpec(replicas=2, cores=4)
    varied = {"balance": balance, "events": events, "deadline_s": 1.0, "warm_up_s": 0.0, "seconds": 200}
    result = run(replica, load, replicas=4, machine=machine, **varied)
    assert result.arrived == len(result.ended) + result.under_way
    assert set(result.outcomes) == {ANSWERED, REFUSED, LOST, EXPIRED}
    assert result.mean_requests == pytest.approx(result.arrived / 200 * mean_latency(result), rel=0.03)
    assert max(moment.images for moment in result.moments) <= 4 * 6


def test_seed_decides_everything() -> None:
    scenario = Scenario("test", queue(Duration(1.0, 1.0)), Arrivals.at(RATE), replicas=3, balance="random", seconds=200)
    first, same, other = (simulate(scenario, seed).ended for seed in (1, 1, 2))
    assert first == same != other


def test_least_connections_beat_chance() -> None:
    p99 = {
        balance: run(queue(Duration(1.0, 1.0)), Arrivals.at(8 * 0.8), replicas=8, balance=balance, seconds=800).latency_s(0.99)
        for balance in BALANCES
    }
    assert p99["least connections"] < p99["best of two"] < p99["random"]
    assert p99["least connections"] < p99["round robin"] < p99["random"]


def test_bound_on_images_refuses_the_rest() -> None:
    replica = replace(queue(Duration(1.0)), max_inflight_images=5)
    result = run(replica, Arrivals.at(3.0), seconds=2_000)
    assert result.throughput == pytest.approx(1.0, rel=0.01)
    assert result.outcomes[REFUSED] == pytest.approx(2.0 * 2_000, rel=0.05)
    assert max(each.latency_s for each in result.ended) <= 5.0 + 1e-6  # four are before it at most


def test_deadline_frees_the_place() -> None:
    replica = replace(queue(Duration(1.0)), max_inflight_images=50)
    result = run(replica, Arrivals.at(2.0), deadline_s=3.0, seconds=2_000)
    assert set(result.outcomes) == {ANSWERED, EXPIRED}
    assert max(each.latency_s for each in result.ended) <= 3.0 + 1e-6
    assert result.mean_requests < 50


def test_killed_replica_costs_what_it_had() -> None:
    replica = replace(queue(Duration(1.0), servers=2), start_s=10.0)
    result = run(replica, Clients(8), replicas=2, events=(Kill(50.0),), warm_up_s=0.0, seconds=100)
    assert result.outcomes[LOST] == 4
    assert set(result.outcomes) == {ANSWERED, LOST}
    ready = {moment.at_s: moment.replicas for moment in result.moments}
    assert (ready[49.0], ready[55.0], ready[61.0]) == (2, 1, 2)


def test_lone_replica_is_an_outage() -> None:
    replica = replace(queue(Duration(1.0)), start_s=10.0)
    result = run(replica, Clients(1), events=(Kill(50.5),), warm_up_s=0.0, seconds=100)
    assert set(result.outcomes) == {ANSWERED, LOST, UNAVAILABLE}
    gone = [each.at for each in result.ended if each.outcome == UNAVAILABLE]
    assert (min(gone), max(gone)) == pytest.approx((50.55, 60.5), abs=0.1)


def test_draining_replica_loses_nothing() -> None:
    replica = replace(queue(Duration(1.0), servers=2), start_s=10.0)
    result = run(replica, Clients(8), replicas=2, events=(Drain(50.5),), warm_up_s=0.0, seconds=100)
    assert set(result.outcomes) == {ANSWERED}
    ready = Counter(moment.replicas for moment in result.moments)
    assert ready[1] == pytest.approx(12, abs=2)  # two seconds of draining, ten of starting


def test_autoscaling_follows_the_load() -> None:
    spec = Autoscaling(target=4, least=2, most=8, poll_s=5, window_s=10, down_after_s=60)
    replica = replace(queue(Duration(0.1), servers=2), start_s=10.0)
    steps = Arrivals(((0.0, 10.0), (100.0, 80.0), (400.0, 10.0)))
    result = run(replica, steps, replicas=2, autoscaling=spec, warm_up_s=0.0, seconds=800)
    ready = {moment.at_s: moment.replicas for moment in result.moments}
    assert ready[99.0] == 2
    assert ready[110.0] == 2  # noticed, and still starting
    assert 4 < ready[395.0] <= 8
    assert ready[440.0] > 2  # fewer only after a minute
    assert ready[795.0] == 2
    assert set(result.outcomes) == {ANSWERED}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_have_their_table(name: str) -> None:
    scenarios = [replace(scenario, seconds=0.35, warm_up_s=0.0) for scenario in SCENARIOS[name]()]
    results = [simulate(scenario) for scenario in scenarios]
    heading, _, *rows = table(results)
    assert heading == HEADING
    assert [row.split(" | ")[0] for row in rows] == [f"| {scenario.name}" for scenario in scenarios]
    assert len({row.count("|") for row in (heading, *rows)}) == 1
    assert all(result.outcomes[ANSWERED] > 0 for result in results)

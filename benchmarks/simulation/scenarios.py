"""Scenarios of docs/scale.md."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from benchmarks.simulation.balancer import BALANCES
from benchmarks.simulation.known import (
    CPU_MACHINE,
    CPU_REPLICA,
    H200_ALONE,
    H200_PROCESS,
    H200_QUARTER,
    H200_SHARED,
)
from benchmarks.simulation.scenario import Arrivals, Autoscaling, Clients, Drain, Duration, Kill, Scenario

CPU_RATE = 181.0
"""Answers a second of one machine of two cores to 32 clients, as measured; the simulation has 183."""


def h200() -> Iterator[Scenario]:
    """One GPU: what was measured there, to compare with."""
    for clients in (8, 64, 256):
        load = Clients(clients)
        yield Scenario(f"one process, {clients} clients", H200_PROCESS, load, machine=H200_ALONE, seconds=5, warm_up_s=1)
        yield Scenario(
            f"four replicas, {clients} clients", H200_QUARTER, load, replicas=4, machine=H200_SHARED, seconds=5, warm_up_s=1
        )


def one_gpu() -> Iterator[Scenario]:
    """One GPU: what more cores, a shorter event loop or decoding on the GPU would give."""
    nvjpeg = replace(H200_QUARTER, decode=Duration(0.00006))
    for name, spec, cores, replicas in (
        ("16 cores, 4 replicas", H200_QUARTER, 16, 4),
        ("32 cores, 8 replicas", H200_QUARTER, 32, 8),
        ("48 cores, 12 replicas", H200_QUARTER, 48, 12),
        ("16 cores, loop of 0.3 ms", replace(H200_QUARTER, loop_s=0.0003), 16, 4),
        ("16 cores, decode of 0.06 ms", nvjpeg, 16, 4),
        ("16 cores, both", replace(nvjpeg, loop_s=0.0003), 16, 4),
        ("16 cores, both, 8 replicas", replace(nvjpeg, loop_s=0.0003), 16, 8),
    ):
        machine = replace(H200_SHARED, replicas=replicas, cores=cores)
        yield Scenario(name, spec, Clients(64 * replicas), replicas, machine, seconds=2, warm_up_s=0.5)


def balance() -> Iterator[Scenario]:
    """Ways to choose among eight machines of two cores, at 0.5, 0.7 and 0.9 of their saturation."""
    for load in (0.5, 0.7, 0.9):
        for name in BALANCES:
            rate = Arrivals.at(8 * CPU_RATE * load)
            yield Scenario(f"{name}, load {load}", CPU_REPLICA, rate, 8, CPU_MACHINE, name, seconds=30)


def headroom() -> Iterator[Scenario]:
    """One of N machines is killed after 20 s and not replaced within the run, at several loads."""
    for machines in (2, 4, 8):
        for load in (0.4, 0.6, 0.8):
            rate = Arrivals.at(machines * CPU_RATE * load)
            replica = replace(CPU_REPLICA, start_s=60.0)
            yield Scenario(
                f"{machines} machines, load {load}, one killed",
                replica,
                rate,
                machines,
                CPU_MACHINE,
                events=(Kill(20.0),),
                seconds=45,
            )


def update() -> Iterator[Scenario]:
    """Four machines are replaced one by one."""
    for load in (0.5, 0.7, 0.8):
        events = tuple(Drain(10.0 + 20.0 * number) for number in range(4))
        rate = Arrivals.at(4 * CPU_RATE * load)
        yield Scenario(f"4 machines, load {load}", CPU_REPLICA, rate, 4, CPU_MACHINE, events=events, seconds=100)


def autoscaling() -> Iterator[Scenario]:
    """The load becomes three times as large after a minute; a machine is ready after 2, 40 or 120 s."""
    for start_s in (2.0, 40.0, 120.0):
        for target in (8.0, 64.0):
            steps = Arrivals(((0.0, CPU_RATE), (60.0, 3 * CPU_RATE)))
            spec = Autoscaling(target, least=2, most=10)
            replica = replace(CPU_REPLICA, start_s=start_s)
            name = f"start {start_s:.0f} s, target {target:.0f}"
            yield Scenario(name, replica, steps, 2, CPU_MACHINE, autoscaling=spec, seconds=235)


SCENARIOS: Mapping[str, Callable[[], Iterator[Scenario]]] = {
    "h200": h200,
    "one-gpu": one_gpu,
    "balance": balance,
    "headroom": headroom,
    "update": update,
    "autoscaling": autoscaling,
}

"""Prediction of two replicas behind HAProxy from the measurement of one, and their measurement."""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bench.load import Load, Target, closed_loop
from benchmarks.images import WEB
from benchmarks.machine import describe
from benchmarks.measure import interleaved
from benchmarks.peers import CPUS
from benchmarks.simulation.measured import Alone, Stages, others_on, read, replica_of
from benchmarks.simulation.proxied import Group, cpu_s, haproxy, replicas
from benchmarks.simulation.run import Result, simulate
from benchmarks.simulation.scenario import Clients, MachineSpec, ReplicaSpec, Scenario

_ONE, _TWO = ["127.0.0.2"], ["127.0.0.3", "127.0.0.4"]
_WARM_UP_S = 1.0
_PATH = "/predict?vectors=false"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the measurement."""

    rounds: int
    seconds: float
    clients: Sequence[int]


class Side:
    """One replica, or two behind HAProxy; stopped unless it is measured."""

    def __init__(self, group: Group, port: int, host: str, images: Sequence[bytes], proxy: int | None = None) -> None:
        self.group, self._port, self._host, self._images, self._proxy = group, port, host, images, proxy
        self.loads: dict[int, list[Load]] = {}
        self.stages: dict[int, list[Stages]] = {}
        """Of the first replica, by clients and round."""
        self.cpu_s: dict[int, list[float]] = {}
        """CPU time of an answer in the replicas, by clients and round."""
        self.proxy_s: list[float] = []
        """CPU time of the proxy for an answer, by round and clients."""

    def measure(self, clients: int, seconds: float) -> float:
        """Return the throughput of a round."""
        (first, *_) = self.group.servers
        target = Target(self._port, _PATH, self._images, "image/jpeg", host=self._host)
        self.group.resume()
        try:
            closed_loop(target, clients, _WARM_UP_S, 0)
            before, own_s = read(first, self.group.port), self._own_s()
            proxy_s = cpu_s(self._proxy) if self._proxy else 0.0
            load = closed_loop(target, clients, seconds, 0)
            self.cpu_s.setdefault(clients, []).append((self._own_s() - own_s) / (load.throughput * seconds))
            if self._proxy:
                self.proxy_s.append((cpu_s(self._proxy) - proxy_s) / (load.throughput * seconds))
            after = read(first, self.group.port)
        finally:
            self.group.pause()
        if load.errors:
            raise SystemExit(f"{load.errors} requests failed")
        self.loads.setdefault(clients, []).append(load)
        self.stages.setdefault(clients, []).append(Stages.between(before, after))
        return load.throughput

    def _own_s(self) -> float:
        return sum(cpu_s(pid) for server in self.group.servers.values() for pid in server.pids())

    def median(self, clients: int) -> Alone:
        """Return the medians of all rounds."""
        loads, stages = self.loads[clients], self.stages[clients]
        middle = statistics.median

        def of(name: str) -> float:
            return middle(float(getattr(load, name)) for load in loads)

        load = Load(loads[0].offered, of("throughput"), of("p50"), of("p95"), of("p99"), 0, of("generator_share"))
        means = {stage: middle(each.stage_s[stage] for each in stages) for stage in stages[0].stage_s}
        return Alone(load, Stages(middle(each.batch for each in stages), means), middle(self.cpu_s[clients]))


def compare(options: Options) -> None:
    """Measure, predict, and print both."""
    _say(f"{describe()}\n\nload average at the start {os.getloadavg()[0]:.2f}\n")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        images = [file.read_bytes() for file in WEB.files(directory / "images")]
        with replicas(_ONE, directory) as one, replicas(_TWO, directory) as two:
            two.resume()
            with haproxy(two, directory) as (port, proxy):
                two.pause()
                alone, both = Side(one, one.port, _ONE[0], images), Side(two, port, "127.0.0.1", images, proxy)
                largest = _measure(alone, both, options)
    spec = replica_of([alone.median(clients) for clients in sorted(options.clients)], largest, _variation(alone))
    _say(f"load average at the end {os.getloadavg()[0]:.2f}\n\n{_describe(spec, alone, options)}\n")
    others = others_on(CPUS, alone.median(min(options.clients)))
    _say(f"CPU time of an answer: {_cpu(alone, options)}; with two {_cpu(both, options)}; others on the cores: {others:.1f}\n")
    for line in _rows(spec, alone, both, options, others):
        _say(line)
    _say(f"\nHAProxy: {statistics.median(both.proxy_s) * 1000:.2f} ms of CPU an answer")


def _measure(alone: Side, both: Side, options: Options) -> int:
    """Measure both in interleaved rounds; return the largest batch that the service runs."""
    for clients in options.clients:
        sides: list[tuple[str, Callable[[], float]]] = [
            (name, lambda side=side, clients=clients: side.measure(clients, options.seconds))  # type: ignore[misc]
            for name, side in (("one replica", alone), ("two", both))
        ]
        interleaved(f"{clients} clients", sides, options.rounds)
    alone.group.resume()
    return round(read(_ONE[0], alone.group.port)["vit_max_batch_size_images"])


def _variation(alone: Side) -> float:
    """Return the variation of service that explains how far p95 of one client is from its median.

    A client alone waits for nobody, so that its latencies vary as decoding and inference do; 1.64 is a normal distribution's.
    """
    load = alone.median(min(alone.loads)).load
    return max(0.0, load.p95 / load.p50 - 1) / 1.64


def _predict(spec: ReplicaSpec, number: int, clients: int, others: float) -> Result:
    machine = MachineSpec(number, CPUS, others)
    return simulate(Scenario(f"{clients}", spec, Clients(clients), number, machine, seconds=60, warm_up_s=5))


def _describe(spec: ReplicaSpec, alone: Side, options: Options) -> str:
    engine = spec.engine
    batches = ", ".join(f"{alone.median(clients).stages.batch:.1f}" for clients in options.clients)
    return (
        f"one replica: decoding {spec.decode.mean_s * 1000:.2f} ms; a batch {engine.batch_s * 1000:.2f} ms and "
        f"{engine.image_s * 1000:.2f} ms an image, up to {engine.max_batch_size} (mean batches {batches}); the rest of a "
        f"request {spec.loop_s * 1000:.2f} ms; variation {engine.variation:.2f}"
    )


def _cpu(side: Side, options: Options) -> str:
    return ", ".join(f"{side.median(clients).cpu_s * 1000:.1f}" for clients in options.clients) + " ms"


def _rows(spec: ReplicaSpec, alone: Side, both: Side, options: Options, others: float) -> Iterator[str]:
    yield "| clients | replicas | a second: predicted, measured [rounds] | error | p50 ms | error | p99 ms | error |"
    yield "|" + "---|" * 8
    for clients in options.clients:
        for name, side, number in (("one, fitted", alone, 1), ("two", both, 2)):
            result, load = _predict(spec, number, clients, others), side.median(clients).load
            rounds = ", ".join(f"{each.throughput:.0f}" for each in side.loads[clients])
            pairs = [
                (f"{result.throughput:.1f}, {load.throughput:.1f} [{rounds}]", result.throughput, load.throughput),
                *(
                    (f"{found * 1000:.0f}, {seen * 1000:.0f}", found, seen)
                    for found, seen in ((result.latency_s(0.5), load.p50), (result.latency_s(0.99), load.p99))
                ),
            ]
            cells = " | ".join(f"{shown} | {predicted / seen - 1:+.0%}" for shown, predicted, seen in pairs)
            yield f"| {clients} | {name} | {cells} |"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

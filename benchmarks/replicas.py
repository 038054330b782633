"""Replicas behind Ray Serve's HAProxy over the plain service on the same cores, in interleaved rounds.

.venv/ray/bin/python -m benchmarks.replicas [--rounds N] [--seconds S] [--clients C ...]

The environment is that of `make ray-test`. The plain service has all cores; each replica has one, with one
decoding process. Whichever is not measured is stopped.
"""

import argparse
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from app.bench.load import Target, closed_loop
from app.settings import BUNDLED_MODEL
from benchmarks import machine
from benchmarks.contenders import pss_mib, start_ours, wait_until_healthy
from benchmarks.images import WEB
from benchmarks.measure import Samples, interleaved
from benchmarks.peers import CPUS, ROOT, Server, free_port

_WARM_UP_S = 1.0
_RAY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes 127.0.0.1 the node's address, on Linux too
}


def serve_by_ray(port: int, replicas: int) -> None:
    """Serve until SIGTERM, with a cluster of this process's own."""
    import ray
    from ray import serve

    from app.ray import Options, app

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as directory:
        ray.init(num_cpus=replicas, include_dashboard=False, log_to_driver=False, _temp_dir=directory)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(Options(replicas=replicas, cpus=1)))
        signal.signal(signal.SIGTERM, lambda *_: None)  # after ray.init, whose own handler aborts
        signal.pause()
        serve.shutdown()
        ray.shutdown()


class Case:
    """A server that is stopped while another is measured."""

    def __init__(self, server: Server, target: Target, ready_s: float) -> None:
        self.server, self._target, self._ready_s = server, target, ready_s
        self.p50_ms: dict[int, list[float]] = {}
        self.cpu_ms: dict[int, list[float]] = {}
        """CPU time of an answer, in all processes of the server, by clients and round."""

    def measure(self, clients: int, seconds: float) -> float:
        """Return the throughput of a round."""
        self.server.resume()
        try:
            closed_loop(self._target, clients, _WARM_UP_S, 0)
            began = self._cpu_s()
            load = closed_loop(self._target, clients, seconds, 0)
            cpu_s = self._cpu_s() - began
        finally:
            self.server.pause()
        if load.errors:
            raise SystemExit(f"{load.errors} requests failed")
        self.cpu_ms.setdefault(clients, []).append(cpu_s * 1000 / (load.throughput * seconds))
        self.p50_ms.setdefault(clients, []).append(load.p50 * 1000)
        return load.throughput

    def _cpu_s(self) -> float:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.server.pids()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")

    def describe(self) -> str:
        return f"ready after {self._ready_s:.0f} s, {pss_mib(self.server.pids()):.0f} MiB"


@contextmanager
def _running(server: Server, port: int, images: list[bytes]) -> Iterator[Case]:
    began = time.monotonic()
    try:
        wait_until_healthy(server, port)
        case = Case(server, Target(port, "/predict?vectors=false", images, "image/jpeg"), time.monotonic() - began)
        server.pause()
        yield case
    finally:
        server.stop(grace_s=60)


def _start_ray(replicas: int, cache: Path) -> tuple[Server, int]:
    port, mark = free_port(), uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIT_")}
    environment |= {"VIT_CACHE_DIR": str(cache), "RAY_AUTH_TOKEN": secrets.token_hex(32), "VIT_BENCHMARK_RUN": mark, **_RAY}
    command = [sys.executable, "-m", "benchmarks.replicas", "--port", str(port), "--replicas", str(replicas)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    return Server(process, f"VIT_BENCHMARK_RUN={mark}"), port


def _row(cases: dict[str, Case], clients: int, seconds: float, rounds: int) -> str:
    measured = [(name, partial(case.measure, clients, seconds)) for name, case in cases.items()]
    found = interleaved(f"{clients} clients", measured, rounds)
    plain, ray = found["plain"], found["Ray"]
    ratios = ", ".join(f"{theirs / ours:.2f}" for theirs, ours in zip(ray.values, plain.values, strict=True))
    of_each = [(case.p50_ms[clients], case.cpu_ms[clients], found[name].median) for name, case in cases.items()]
    rates = [f"{rate:.1f} ({statistics.median(p50):.0f}; {statistics.median(cpu):.1f})" for p50, cpu, rate in of_each]
    cpu_ratio = Samples(tuple(cases["Ray"].cpu_ms[clients])).over(Samples(tuple(cases["plain"].cpu_ms[clients])))
    return f"| {clients} | {' | '.join(rates)} | {ray.over(plain):.2f} [{ratios}] | {cpu_ratio:.2f} |"


def compare(arguments: argparse.Namespace) -> None:
    """Print a table of both, with their ratios."""
    print(f"{machine.describe()}; load average {os.getloadavg()[0]:.2f}\n")  # noqa: T201
    with tempfile.TemporaryDirectory() as directory:
        images = [file.read_bytes() for file in WEB.files(Path(directory, "images"))]
        cache = Path(directory, "cache")
        plain, port = start_ours(Path(BUNDLED_MODEL), {"cache_dir": cache}, subprocess.DEVNULL)
        with _running(plain, port, images) as one, _running(*_start_ray(arguments.replicas, cache), images) as many:
            both = {"plain": one, "Ray": many}
            print("| clients | plain: a second (p50 ms; CPU ms) | Ray | Ray over plain [each round] | CPU of an answer |")  # noqa: T201
            print("|---|---|---|---|---|")  # noqa: T201
            for clients in arguments.clients:
                print(_row(both, clients, arguments.seconds, arguments.rounds), flush=True)  # noqa: T201
            print("\n" + "; ".join(f"{name}: {case.describe()}" for name, case in both.items()))  # noqa: T201
    print(f"load average {os.getloadavg()[0]:.2f}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--replicas", type=int, default=CPUS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.port:
        serve_by_ray(arguments.port, arguments.replicas)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()

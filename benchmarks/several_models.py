"""Several models in one process: their memory, their speed together, and what a swap costs the others.

python -m benchmarks.several_models [--models N] [--rounds N] [--seconds S] [--clients C]

1. N copies of the bundled model, asked in turn, against a service that has it once: the same clients, in turn, round by round.
2. The latency of one model with and without another one being loaded again and again. Clients share the service's cores.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.bench.load import Load, Target, closed_loop, head, open_loop
from app.settings import BUNDLED_MODEL
from benchmarks import machine
from benchmarks.contenders import start_ours, wait_until_healthy
from benchmarks.images import WEB
from benchmarks.peers import Server
from benchmarks.watch import resident_bytes

_WARM_UP_S = 0.5
_JPEG = "image/jpeg"
_ADMIN_KEY = "key of the benchmark"


@dataclass(frozen=True, slots=True)
class Spread(Target):
    """Target whose requests go to several models in turn."""

    models: Sequence[str] = ()

    def requests(self) -> list[bytes]:
        """Return each image to each model, so that neighbours are for different models."""
        return [
            head(f"{self.path}&model={model}", len(body), self.content_type, self.authority) + body
            for body in self.bodies
            for model in self.models
        ]


class Swapper(threading.Thread):
    """A client that loads a model again and again while `swapping` is set."""

    def __init__(self, port: int, model: str) -> None:
        super().__init__(daemon=True)
        self._url = f"http://127.0.0.1:{port}/v2/repository/models/{model}/load"
        self.swapping = threading.Event()
        self.idle = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        with httpx.Client(timeout=300, headers={"X-API-Key": _ADMIN_KEY}) as client:
            while self.swapping.wait():
                self.idle.clear()
                response = client.post(self._url).raise_for_status()
                self.seconds.append(response.elapsed.total_seconds())
                self.idle.set()


def compare(titles: tuple[str, str], loads: tuple[Callable[[int], Load], Callable[[int], Load]], rounds: int) -> list[Load]:
    """Print two loads of each round, in turn, and the ratios of the second to the first; return those of the first."""
    measured: tuple[list[Load], list[Load]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            measured[which].append(loads[which](number))
    _print("| | answers/s | p50 ms | p99 ms (each round) |\n|---|---|---|---|")
    for title, each in zip(titles, measured, strict=True):
        p99s = ", ".join(f"{load.p99 * 1e3:.0f}" for load in each)
        rate, p50, p99 = (statistics.median(getattr(load, field) for load in each) for field in ("throughput", "p50", "p99"))
        _print(f"| {title} | {rate:.1f} | {p50 * 1e3:.1f} | {p99 * 1e3:.1f} ({p99s}) |")
    ratios = [
        statistics.median(getattr(b, field) / getattr(a, field) for a, b in zip(*measured, strict=True))
        for field in ("throughput", "p50", "p99")
    ]
    _print(f"| ratio, median of the rounds | {ratios[0]:.3f} | {ratios[1]:.3f} | {ratios[2]:.3f} |")
    _print(f"\n{sum(load.errors for each in measured for load in each)} errors\n")
    return measured[0]


@contextmanager
def service(directory: Path, names: Sequence[str]) -> Iterator[tuple[Server, int]]:
    """Start a service with the bundled model under each of these names, and yield it with its port."""
    models = ",".join(f"{name}={BUNDLED_MODEL}" for name in names)
    settings = {"models": models, "admin_key": _ADMIN_KEY, "cache_dir": directory / "cache"}
    server, port = start_ours(None, settings, subprocess.DEVNULL)
    try:
        wait_until_healthy(server, port)
        yield server, port
    finally:
        server.stop()


def show_memory(server: Server, port: int) -> None:
    """Print what each model takes, and the whole process."""
    models = httpx.get(f"http://127.0.0.1:{port}/models").json()["models"]
    sizes = [model["bytes"] / 2**20 for model in models]
    process = resident_bytes(server.process.pid) / 2**20
    _print(
        f"{len(sizes)} models: {process:.0f} MiB of the process; by model, MiB: {', '.join(f'{size:.0f}' for size in sizes)}\n"
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    names = [f"m{number}" for number in range(arguments.models)]
    _print(f"{machine.describe()}\n")
    with tempfile.TemporaryDirectory() as given:
        directory = Path(given)
        images = [file.read_bytes() for file in WEB.files(directory / "images")]
        with service(directory, names[:1]) as (one, port), service(directory, names) as (several, several_port):
            together(arguments, images, (one, port), (several, several_port), names)
        with service(directory, names[:2]) as (_, port):
            swaps(arguments, images, port, names)


def together(
    arguments: argparse.Namespace,
    images: Sequence[bytes],
    one: tuple[Server, int],
    several: tuple[Server, int],
    names: Sequence[str],
) -> None:
    """Compare one model with several, each service paused while the other works."""

    def load(service: tuple[Server, int], models: Sequence[str]) -> Callable[[int], Load]:
        server, port = service
        target = Spread(port, "/predict?vectors=false", images, _JPEG, models=models)

        def measure(_: int) -> Load:
            server.resume()
            try:
                return closed_loop(target, arguments.clients, arguments.seconds, _WARM_UP_S)
            finally:
                server.pause()

        return measure

    for server, _ in (one, several):
        server.pause()
    titles = ("one model", f"{len(names)} models")
    compare(titles, (load(one, names[:1]), load(several, names)), arguments.rounds)
    several[0].resume()
    show_memory(*several)


def swaps(arguments: argparse.Namespace, images: Sequence[bytes], port: int, names: Sequence[str]) -> None:
    """Compare one model's latency with and without swaps of another, at full load and at half of it."""
    swapper = Swapper(port, names[1])
    swapper.start()
    target = Spread(port, "/predict?vectors=false", images, _JPEG, models=names[:1])

    def beside(load: Callable[[int], Load]) -> Callable[[int], Load]:
        def measure(number: int) -> Load:
            swapper.swapping.set()
            try:
                return load(number)
            finally:
                swapper.swapping.clear()
                swapper.idle.wait()

        return measure

    def full(_: int) -> Load:
        return closed_loop(target, arguments.clients, arguments.seconds, _WARM_UP_S)

    alone = compare(("alone, full load", "beside swaps"), (full, beside(full)), arguments.rounds)
    rate = statistics.median(load.throughput for load in alone) / 2

    def half(number: int) -> Load:
        return open_loop(target, rate, arguments.seconds, number)

    compare((f"alone, {rate:.0f}/s", "beside swaps"), (half, beside(half)), arguments.rounds)
    _print(f"{len(swapper.seconds)} swaps, {statistics.median(swapper.seconds):.1f} s each")


if __name__ == "__main__":
    main()

"""Isolation of explanations: latencies of /predict with and without a client that explains without a pause, in turn.

python -m benchmarks.explaining [--rounds N] [--seconds S] [--clients C]

The load is a closed loop, which takes all cores, and then an open loop at half of that rate. Clients share the service's cores.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.bench.load import Load, Target, closed_loop, open_loop
from app.settings import BUNDLED_MODEL
from benchmarks import machine
from benchmarks.contenders import start_ours, wait_until_healthy
from benchmarks.images import WEB

_WARM_UP_S = 0.5
_JPEG = "image/jpeg"


class ExplainingClient(threading.Thread):
    """A client that asks for one explanation after another while `explaining` is set."""

    def __init__(self, port: int, images: Sequence[bytes]) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._images = itertools.cycle(images)
        self.explaining = threading.Event()
        self.answered = 0

    def run(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=120) as client:
            while self.explaining.wait():
                client.post("/explain", content=next(self._images), headers={"Content-Type": _JPEG}).raise_for_status()
                self.answered += 1


def measure(name: str, load: Callable[[int], Load], client: ExplainingClient, rounds: int) -> list[Load]:
    """Print both ways of each round, in turn, with the ratios of their medians; return the loads without explanations."""
    without, beside, explained = list[Load](), list[Load](), 0
    for number in range(rounds):
        for explaining in (True, False) if number % 2 else (False, True):
            answered = client.answered
            if explaining:
                client.explaining.set()
            (beside if explaining else without).append(load(number))
            client.explaining.clear()
            explained += client.answered - answered
    _print(f"| {name} | answers/s | p50 ms | p99 ms (each round) |\n|---|---|---|---|")
    for title, loads in (("alone", without), ("beside explanations", beside)):
        p99s = ", ".join(f"{each.p99 * 1e3:.0f}" for each in loads)
        rate, p50, p99 = (_median(loads, field) for field in ("throughput", "p50", "p99"))
        _print(f"| {title} | {rate:.1f} | {p50 * 1e3:.1f} | {p99 * 1e3:.1f} ({p99s}) |")
    fields = ("throughput", "p50", "p99")
    ratios = [
        statistics.median(getattr(b, field) / getattr(a, field) for a, b in zip(without, beside, strict=True))
        for field in fields
    ]
    _print(f"| ratio, median of the rounds | {ratios[0]:.3f} | {ratios[1]:.3f} | {ratios[2]:.3f} |")
    errors = sum(each.errors for each in (*without, *beside))
    _print(f"\n{explained} explanations in {rounds} rounds; {errors} errors\n")
    return without


def _median(loads: Sequence[Load], field: str) -> float:
    return statistics.median(getattr(each, field) for each in loads)


@contextmanager
def _service(cache: Path) -> Iterator[int]:
    """Start the service with the bundled model, and yield its port."""
    server, port = start_ours(Path(BUNDLED_MODEL), {"cache_dir": cache}, subprocess.DEVNULL)
    try:
        wait_until_healthy(server, port)
        yield port
    finally:
        server.stop()


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    seconds, clients = arguments.seconds, arguments.clients
    _print(f"{machine.describe()}\n")
    with tempfile.TemporaryDirectory() as directory, _service(Path(directory, "cache")) as port:
        images = [file.read_bytes() for file in WEB.files(Path(directory, "images"))]
        target = Target(port, "/predict", images, _JPEG)
        client = ExplainingClient(port, images)
        client.explaining.set()
        client.start()
        while client.answered < 2:  # the process has started
            client.join(0.1)
        client.explaining.clear()
        alone = measure(
            f"closed loop, {clients} clients",
            lambda _: closed_loop(target, clients, seconds, _WARM_UP_S),
            client,
            arguments.rounds,
        )
        rate = _median(alone, "throughput") / 2
        measure(f"open loop, {rate:.0f}/s", lambda number: open_loop(target, rate, seconds, number), client, arguments.rounds)


if __name__ == "__main__":
    main()

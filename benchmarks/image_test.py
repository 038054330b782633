"""The image and its compose files with a real Docker: python -m benchmarks.image_test [--rounds 5] [--seconds 8]

Builds the image, starts it behind the proxy, predicts a photograph, runs two replicas, kills one, replaces both, measures them
against one plain container on the same cores, and stops them. Clients send all the while, and each lost request is counted.
Where Docker Hub is out of reach, BASE and HAPROXY_IMAGE name other images; DOCKER_HOST names another Docker, and COMPOSE
another command of Compose.

Progress goes to standard error, the table to standard output; the exit status is 1 if a step fails or a goal is missed.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from app.bench.connections import Connections
from app.bench.images import generate
from app.bench.load import Exchange, Target, ask, closed_loop, exchange
from app.process.cpu import available_cpus
from benchmarks import machine
from benchmarks.containers import CommandFailed, Project, environment_of, image_mib, predictions, run
from benchmarks.measure import interleaved, progress
from benchmarks.report import Verdict, conclude

_ROOT = Path(__file__).parent.parent
_PHOTOGRAPH, _CLASS = _ROOT / "examples" / "images" / "cat.jpg", "tabby cat"
_CLIENTS = 8
_LOADED = 32
"""Clients of the measurement of throughput."""

_GRACE_S = 40.0
"""`stop_grace_period` of compose.scale.yml."""

_PATIENCE_S = 120.0
_PAUSE_S = 0.05


class Clients:
    """Clients in a thread, each of which sends one request after another until the end of the block."""

    def __init__(self, port: int, images: list[bytes]) -> None:
        self._target = Target(port, "/predict?vectors=false", images, "image/jpeg")
        self._exchanges: list[Exchange] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._work()))

    async def _work(self) -> None:
        connections, requests = Connections(self._target), itertools.cycle(self._target.requests())

        async def client() -> None:
            while not self._enough.is_set():
                found = await exchange(connections, next(requests), time.perf_counter())
                self._exchanges.append(found)
                if found.outcome != "200":
                    await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(client())
        connections.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self.more(2 * _CLIENTS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._enough.set()
        self._thread.join()

    def more(self, number: int) -> None:
        """Wait until so many more requests are answered."""
        goal, end = self.answered + number, time.monotonic() + _PATIENCE_S
        while self.answered < goal:
            if time.monotonic() > end:
                raise CommandFailed(f"no {number} more answers in {_PATIENCE_S:.0f} s: {self.lost}")
            time.sleep(_PAUSE_S)

    @property
    def answered(self) -> int:
        return sum(each.outcome == "200" for each in self._exchanges)

    @property
    def lost(self) -> Counter[str]:
        """Requests without an answer of 200, by status or error."""
        return Counter(each.outcome for each in self._exchanges if each.outcome != "200")


def _count(what: str, clients: Clients, most: int) -> Verdict:
    lost = clients.lost.total()
    kinds = "".join(f", {outcome}: {number}" for outcome, number in clients.lost.items())
    shown = f"{lost} of {clients.answered + lost} requests{kinds}"
    return Verdict(f"{what}: lost", lost, shown, f"<= {most}" if most else "0", lost <= most)


def _took(what: str, began: float, shown: str = "") -> Verdict:
    seconds = time.monotonic() - began
    return Verdict(what, seconds, f"{seconds:.0f} s{shown}")


def build_and_start(scaled: Project) -> Iterator[Verdict]:
    """Build the image, start one replica behind the proxy, and predict a photograph."""
    progress("building the image")
    began = time.monotonic()
    scaled.build()
    yield _took("image built", began, f", {image_mib('vit-serve:cpu'):.0f} MiB")
    progress("starting one replica")
    began = time.monotonic()
    scaled.up(1)
    yield _took("healthy behind the proxy", began)
    ((status, body),) = ask(Target(scaled.port, "/predict?vectors=false", [_PHOTOGRAPH.read_bytes()], "image/jpeg"))
    label = json.loads(body)["predictions"][0]["label"] if status == 200 else f"status {status}"
    yield Verdict("photograph", status, label, _CLASS, label == _CLASS)


def scale(scaled: Project, images: list[bytes]) -> Iterator[Verdict]:
    """Run two replicas instead of one, and see both answer."""
    progress("scaling to two replicas under load")
    with Clients(scaled.port, images) as clients:
        scaled.up(2)
        before = {container: predictions(container) for container in scaled.containers()}
        clients.more(20 * _CLIENTS)
        answered = [predictions(container) - then for container, then in before.items()]
    share = min(answered) / max(sum(answered), 1)
    yield _count("scaled to two", clients, 0)
    yield Verdict("smaller share of two", share, f"{share:.0%}", ">= 25 %", len(answered) == 2 and share >= 0.25)


def kill(scaled: Project, images: list[bytes]) -> Iterator[Verdict]:
    """Kill one of two replicas, and start it again."""
    progress("killing a replica under load")
    with Clients(scaled.port, images) as clients:
        killed = scaled.containers()[0]
        run(["docker", "kill", "--signal", "KILL", killed])
        clients.more(20 * _CLIENTS)
    yield _count("killed one of two", clients, _CLIENTS)
    progress("starting it again under load")
    with Clients(scaled.port, images) as clients:
        scaled.up(2)
        clients.more(20 * _CLIENTS)
    yield _count("started again", clients, 0)


def update(scaled: Project, images: list[bytes]) -> Iterator[Verdict]:
    """Replace both replicas by ones with another setting."""
    progress("replacing replicas one by one under load")
    before, began = set(scaled.containers()), time.monotonic()
    scaled.settings["VIT_LOG_LEVEL"] = "warning"
    with Clients(scaled.port, images) as clients:
        scaled.update()
        clients.more(20 * _CLIENTS)
    after = scaled.containers()
    new = sum("VIT_LOG_LEVEL=warning" in environment_of(container) for container in set(after) - before)
    yield _count("updated", clients, 0)
    yield Verdict("replicas with the new setting", new, f"{new} of {len(after)}", "2 of 2", new == len(after) == 2)
    yield _took("update", began)


def throughput(scaled: Project, plain: Project, images: list[bytes], rounds: int, seconds: float) -> Iterator[Verdict]:
    """Measure two replicas behind the proxy against one plain container, in interleaved rounds."""
    errors = 0

    def measured(project: Project) -> float:
        nonlocal errors
        load = closed_loop(Target(project.port, "/predict?vectors=false", images, "image/jpeg"), _LOADED, seconds, 2)
        errors += load.errors
        return load.throughput

    progress("starting a plain container")
    with plain.removed_at_the_end():
        plain.up(1)
        cases = [("plain", lambda: measured(plain)), ("two replicas", lambda: measured(scaled))]
        samples = interleaved(f"{_LOADED} clients", cases, rounds)
    for name, each in samples.items():
        yield Verdict(name, each.median, f"{each.median:.1f} a second [{min(each.values):.1f}..{max(each.values):.1f}]")
    ratio = samples["two replicas"].over(samples["plain"])
    yield Verdict("two replicas over plain", ratio, f"{ratio:.2f}", ">= 0.9", ratio >= 0.9)
    yield Verdict("throughput: errors", errors, str(errors), "0", errors == 0)


def stop(scaled: Project) -> Iterator[Verdict]:
    """Stop proxy and replicas, as `docker compose stop` does."""
    progress("stopping")
    containers, began = scaled.containers(), time.monotonic()
    scaled.compose("stop")
    seconds = time.monotonic() - began
    statuses = [state["ExitCode"] for state in scaled.states(containers).values()]
    # the proxy first, then the replicas together
    yield Verdict("stopped", seconds, f"{seconds:.1f} s", f"< {_GRACE_S:.0f} s", seconds < _GRACE_S)
    yield Verdict("exit statuses of replicas", max(statuses), str(statuses), "[0, 0]", statuses == [0, 0])


@contextmanager
def projects() -> Iterator[tuple[Project, Project]]:
    """Make a project of two replicas, which share the cores, and one of a plain container that has them all."""
    cores = str(max(1, available_cpus() // 2))
    name = f"vit-serve-image-test-{os.getpid()}"
    scaled = Project(name, "deploy/compose.scale.yml", {"REPLICA_CORES": cores})
    with scaled.removed_at_the_end():
        yield scaled, Project(f"{name}-plain", "docker-compose.yml")


def main() -> int:
    arguments = _arguments()
    images, started = generate(), time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    verdicts: list[Verdict] = []
    try:
        with projects() as (scaled, plain):
            for verdict in itertools.chain(
                build_and_start(scaled),
                scale(scaled, images),
                kill(scaled, images),
                update(scaled, images),
                throughput(scaled, plain, images, arguments.rounds, arguments.seconds),
                stop(scaled),
            ):
                sys.stderr.write(f"{verdict.what}: {verdict.shown}{'' if verdict.met else ' MISSED'}\n")
                verdicts.append(verdict)
    except CommandFailed as error:
        sys.stderr.write(f"\n{error}\n")
        verdicts.append(Verdict("all steps", 0, str(error).partition("\n")[0], "done", met=False))
    progress("")
    facts = machine.describe()
    note = f"{facts['cpu']}, {facts['cores']} cores; Docker {_versions()}; {started}"
    arguments.output.parent.mkdir(exist_ok=True)
    return conclude("The image and its compose files", note, verdicts, arguments.output, {"machine": facts, "started": started})


def _versions() -> str:
    try:
        docker = run(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
        return f"{docker}, Compose {run([*Project('', '', port=0).compose_command.split(), 'version', '--short']).strip()}"
    except CommandFailed:
        return "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of throughput")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement of throughput")
    parser.add_argument("--output", type=Path, default=_ROOT / ".bench" / "image_test.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

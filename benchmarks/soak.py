"""Soak test: ten minutes of mixed clients, with checks of answers, counters and leaks: python -m benchmarks.soak

Good, broken, oversize and disconnecting clients come at random (an open loop) at a share of the saturation by 32 clients in a
closed loop. Attackers join them in parts of every minute (`attackers.py`), in which fewer others come. Every answer is checked,
logits against those of the image alone, and so are the service's counters. Memory, files and threads are compared between two
idle moments, after a warm-up by the same clients and at the end.

Progress goes to standard error, the table to standard output; the exit status is 1 if a goal is missed.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
import uvloop

from app.bench.load import Exchange, Target, ask, closed_loop, quantile
from benchmarks import machine
from benchmarks.attackers import FEWER, PARTS, PERIOD_S, Attackers, Periods
from benchmarks.clients import IMAGES_A_REQUEST, REFUSALS, TOLERANCE, Clients, KnownImage, Tally
from benchmarks.contenders import start_ours, wait_until_healthy
from benchmarks.images import WEB
from benchmarks.measure import progress
from benchmarks.models import MODELS
from benchmarks.peers import Server
from benchmarks.report import Verdict, conclude
from benchmarks.watch import Usage, metrics_of, probe_live, usage

_WORK = Path(__file__).parent.parent / ".bench"
_MAX_IMAGE_BYTES = 2**20
_MIB = 2**20
_GROWTH = 16 * _MIB
"""Growth of memory that is noise of the allocator."""

_NOISE = 4
"""Files or threads that OpenVINO opens late, under load."""

_KEEP_ALIVE_S = 5
_QUIET_S = 7.0
"""Seconds after which all connections are closed."""

_EXIT_S = 40.0
_GAUGES = ("vit_inflight_images", "vit_queued_images", "vit_inflight_requests", "vit_inflight_bytes")


@dataclass(frozen=True, slots=True)
class Moment:
    """Usage and metrics of an idle server."""

    usage: Usage
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Soak:
    """Measurements of one soak."""

    rate: float
    """Requests a second."""
    tally: Tally
    resident_bytes: Sequence[int]
    """Samples of all processes, one a second."""
    before: Moment
    after: Moment
    exit_status: int | None
    """Exit status on SIGTERM; None if it had to be killed."""
    latencies_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Latencies of single good images by part of the minute."""
    health_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Latencies of `/health/live` by part of the minute."""
    kills: int = 0
    lost_while_idle: float = 0
    """Decoders restarted without traffic."""


def measure(server: Server, port: int, images: Sequence[bytes], load: float, seconds: float, warm_up_s: float) -> Soak:
    """Measure a server that is ready, then stop it."""
    progress("saturation")
    known = _known_images(port, images)
    target = Target(port, "/predict?vectors=false", images, "image/jpeg")
    rate = load * closed_loop(target, clients=32, seconds=5, warm_up_s=1).throughput / IMAGES_A_REQUEST
    progress("warm-up")
    clients = Clients(port, known, _MAX_IMAGE_BYTES, seed=0)
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        uvloop.run(_mixed(server, Clients(port, known, _MAX_IMAGE_BYTES, seed=1), port, rate, warm_up_s, beside))
        before = _quiet(server, port)
        mixed = uvloop.run(_mixed(server, clients, port, rate, seconds, beside))
    progress("waiting for connections to close")
    restarts = _restarts(metrics_now(port))
    after = _quiet(server, port)
    return Soak(
        rate,
        clients.tally,
        mixed.resident_bytes,
        before,
        after,
        _exit_status(server),
        mixed.by_part((due, latency) for due, latency in clients.tally.timed),
        mixed.by_part((probe.due, probe.latency_s) for probe in mixed.health),
        mixed.kills,
        _restarts(after.metrics) - restarts,
    )


@dataclass(frozen=True, slots=True)
class _Mixed:
    """Measurements while clients and attackers were active."""

    periods: Periods
    resident_bytes: list[int]
    health: list[Exchange]
    kills: int

    def by_part(self, timed: Iterable[tuple[float, float]]) -> dict[str, list[float]]:
        """Sort latencies by the part of the minute in which they were due."""
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        for due, latency_s in timed:
            found[self.periods.part(due)].append(latency_s)
        return found


def _known_images(port: int, images: Sequence[bytes]) -> list[KnownImage]:
    """Return the images with their logits, which must differ enough to tell them apart."""
    answers = ask(Target(port, "/predict", images, "image/jpeg"))
    logits = np.array([json.loads(body)["logits"] for _, body in answers])
    distances = np.abs(logits[:, None] - logits).max(axis=-1) + np.eye(len(logits))
    if distances.min() < 100 * TOLERANCE:
        raise SystemExit("two images have nearly the same logits; give others")
    return [KnownImage(image, row) for image, row in zip(images, logits, strict=True)]


async def _mixed(server: Server, clients: Clients, port: int, rate: float, seconds: float, beside: Executor) -> _Mixed:
    """Send requests at random (Poisson) until the end; sample memory once a second, and probe health."""
    rng, under_way, resident_bytes = random.Random(0), set[asyncio.Task[None]](), list[int]()
    began = due = time.perf_counter()
    periods = Periods(began, min(PERIOD_S, seconds))
    attackers = Attackers(clients, server.process.pid, periods, ends=began + seconds)
    attacking = asyncio.create_task(attackers.attack())
    probing = asyncio.get_running_loop().run_in_executor(beside, probe_live, port, seconds)
    while (due := due + rng.expovariate(rate * (1 if periods.part(due) == "usual" else FEWER))) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(clients.call(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        if due - began > len(resident_bytes):
            resident_bytes.append(usage(server.pids()).resident_bytes)
            if len(resident_bytes) % 10 == 0:
                progress(_state(len(resident_bytes), seconds, clients.tally, resident_bytes[-1]))
    await asyncio.gather(*under_way, attacking)
    health = await probing
    clients.close()
    return _Mixed(periods, resident_bytes, health, attackers.kills)


def _state(passed_s: int, seconds: float, tally: Tally, resident_bytes: int) -> str:
    wrong, unanswered = len(tally.wrong), tally.unanswered.total()
    return (
        f"{passed_s} of {seconds:.0f} s: {tally.kinds.total()} requests, {wrong} wrong answers, {unanswered} unanswered; "
        f"{resident_bytes / _MIB:.0f} MiB"
    )


def _quiet(server: Server, port: int) -> Moment:
    """Wait until all connections are closed; return usage and metrics."""
    time.sleep(_QUIET_S)
    metrics = metrics_now(port)
    return Moment(usage(server.pids()), metrics)


def metrics_now(port: int) -> dict[str, float]:
    """Return the server's metrics."""
    return metrics_of(httpx.get(f"http://127.0.0.1:{port}/metrics").content)


def _restarts(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("vit_decoder_restarts_total"))


def _exit_status(server: Server) -> int | None:
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        return None


def verdicts(run: Soak) -> Iterator[Verdict]:
    tally, requests = run.tally, run.tally.kinds.total()
    kinds = ", ".join(f"{kind}: {count}" for kind, count in tally.kinds.most_common())
    yield Verdict("requests", requests, f"{requests}, {run.rate:.0f} a second ({kinds})")
    yield Verdict("correctly answered images", tally.images, str(tally.images), "> 0", tally.images > 0)
    yield _none("wrong answers", tally.wrong)
    yield _none("unanswered requests", tally.unanswered.elements())
    refused = sum(count for (_, status), count in tally.answered.items() if int(status) in REFUSALS) / requests
    yield Verdict("refused with Retry-After", refused, f"{refused:.1%}", "<= 5 %", refused <= 0.05)
    counts = counted(run.before.metrics, run.after.metrics)
    faults = Counter({status: count for (_, status), count in counts.items() if status[0] == "5" and status != "503"})
    yield _none("5xx other than 503", faults.elements())
    yield _none("metrics that differ from answers", miscounted(counts, tally))
    yield from _left_behind(run)
    yield from _under_attack(run)
    latencies_s = [latency_s for _, latency_s in tally.timed]
    half = len(latencies_s) // 2
    p99 = [quantile(part, 0.99) for part in (latencies_s[:half], latencies_s[half:])]
    shown = f"{p99[0] * 1000:.0f} ms in the first half, {p99[1] * 1000:.0f} ms in the second"
    yield Verdict("p99 of single images", p99[1] / p99[0], shown)
    status = run.exit_status
    yield Verdict("exit status on SIGTERM", -1 if status is None else status, str(status), "0", status == 0)


def _under_attack(run: Soak) -> Iterator[Verdict]:
    """Judge the attackers' parts, relative to the calm part of the same minutes."""
    calm_s = quantile(run.latencies_s.get("calm", ()), 0.99)
    for part, goal in (("large batches", 3.0), ("kills", None), ("hostile bodies", None)):
        p99_s = quantile(run.latencies_s.get(part, ()), 0.99)
        shown = f"{p99_s * 1000:.0f} ms, {p99_s / calm_s:.1f} times that of the calm part ({calm_s * 1000:.0f} ms)"
        met = goal is None or not p99_s / calm_s > goal
        yield Verdict(f"p99 of single images: {part}", p99_s / calm_s, shown, f"<= {goal:g} times" if goal else "", met)
    for part in ("calm", "large batches", "kills", "hostile bodies"):
        p99_s = quantile(run.health_s.get(part, ()), 0.99)
        yield Verdict(f"p99 of /health/live: {part}", p99_s, f"{p99_s * 1000:.0f} ms", "<= 100 ms", not p99_s > 0.1)
    yield Verdict("decoders killed", run.kills, str(run.kills))
    lost = run.lost_while_idle
    yield Verdict("decoders restarted while idle", lost, f"{lost:.0f}", "0", not lost)


def _none(what: str, found: Iterator[str] | Sequence[str]) -> Verdict:
    """Return a verdict whose goal is zero findings; it shows the first."""
    found = list(found)
    return Verdict(what, len(found), f"{len(found)}, first: {found[0]}" if found else "0", "0", not found)


def counted(before: Mapping[str, float], after: Mapping[str, float]) -> Counter[tuple[str, str]]:
    """Return the service's count of POST answers between two moments, by route and status."""
    found = Counter[tuple[str, str]]()
    for name, value in after.items():
        if name.startswith("vit_http_requests_total{") and 'method="POST"' in name:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            found[labels["route"], labels["status"]] = round(value - before.get(name, 0.0))
    return +found


def miscounted(counts: Mapping[tuple[str, str], int], tally: Tally) -> list[str]:
    """Return differences from the clients' counts; a disconnected client may count once or not at all."""
    differences = {key: counts.get(key, 0) - tally.answered[key] for key in {*counts, *tally.answered}}
    found = [
        f"{route} {status}: {difference:+d}"
        for (route, status), difference in differences.items()
        if difference < 0 or (difference > 0 and route != "/predict")
    ]
    surplus = sum(difference for difference in differences.values() if difference > 0)
    return found + ([f"{surplus} more than answers, but {tally.vanished} disconnected"] if surplus > tally.vanished else [])


def _left_behind(run: Soak) -> Iterator[Verdict]:
    quarter = len(run.resident_bytes) // 4
    # the allocator reaches its size in the first quarter
    early, late = (
        statistics.median(part) for part in (run.resident_bytes[quarter : 2 * quarter], run.resident_bytes[-quarter:])
    )
    grown = late - early
    shown = f"{early / _MIB:.0f} {grown / _MIB:+.1f} MiB from the second quarter to the last"
    yield Verdict("memory growth", grown, shown, f"<= {_GROWTH / _MIB:+.0f} MiB", grown <= _GROWTH)
    before, after = run.before.usage, run.after.usage
    for what, was, left in (
        ("open files", before.open_files, after.open_files),
        ("threads", before.threads, after.threads),
    ):
        yield Verdict(f"{what} at the end", left, f"{left}, before: {was}", f"<= before + {_NOISE}", left <= was + _NOISE)
    waiting = {name: run.after.metrics[name] for name in _GAUGES}
    shown = ", ".join(f"{name}: {value:.0f}" for name, value in waiting.items())
    yield Verdict("queue at the end", sum(waiting.values()), shown, "0", not any(waiting.values()))


def main() -> int:
    arguments = _arguments()
    model = next(model for model in MODELS if model.name == arguments.model)
    images = [file.read_bytes() for file in WEB.files(_WORK / "images")]
    settings: dict[str, object] = {
        "cache_dir": _WORK / "cache",
        "max_image_bytes": _MAX_IMAGE_BYTES,
        "log_level": "warning",
        "keep_alive_s": _KEEP_ALIVE_S,
    }
    started = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    with (_WORK / "soak.log").open("wb") as log:
        server, port = start_ours(model.directory(_WORK / "models"), settings, log.fileno())
        try:
            wait_until_healthy(server, port)
            seconds = 60 * arguments.minutes
            run = measure(server, port, images, arguments.load, seconds, warm_up_s=max(10.0, seconds / 10))
        finally:
            server.stop()
    progress("")
    found = list(verdicts(run))
    note = f"{arguments.load:.0%} of saturation for {arguments.minutes:g} minutes"
    command = " ".join(["python -m benchmarks.soak", *sys.argv[1:]])
    report = {"machine": machine.describe(), "command": command, "started": started, "resident_bytes": run.resident_bytes}
    return conclude(f"Soak: {model.title}", note, found, arguments.output, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [model.name for model in MODELS]
    parser.add_argument("--model", choices=names, default=names[0], help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=10.0, help="at least 0.2")
    parser.add_argument("--load", type=float, default=0.7, help="offered load as a share of saturation")
    parser.add_argument("--output", type=Path, default=_WORK / "soak.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Behaviour of the service under several times its saturation: python -m benchmarks.overload [--seconds 60] [--times 4]

Saturation is the throughput of 32 clients in a closed loop, before and after. Requests then come at four times that rate in an
open loop, while another process probes the service's health and samples its memory and queue. Latencies of refusals count from
the due time of a request. Requests are sent whole, as most clients do, though a refusal comes before their bodies are read.

Progress goes to standard error, the table to standard output; the exit status is 1 if a goal is missed.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from app.bench.load import Exchange, Load, OpenLoop, Target, ask, closed_loop, quantile, send_open_loop
from benchmarks import machine
from benchmarks.contenders import Contender, contenders
from benchmarks.images import WEB
from benchmarks.measure import progress
from benchmarks.models import MODELS
from benchmarks.report import Verdict, conclude
from benchmarks.watch import Watch, resident_bytes, watch

_WORK = Path(__file__).parent.parent / ".bench"
_CLIENTS = 32
_QUEUE = 256
_DEADLINE_S = 30.0
_CONNECTIONS = 1024
_TAIL_S = 10.0
"""Seconds of watching after the last request."""


@dataclass(frozen=True, slots=True)
class Overload:
    """Measurements of one overload, in seconds and bytes."""

    before: Load
    after: Load
    alone_s: Sequence[float]
    """Latencies of a single client before."""
    rate: float
    seconds: float
    began: float
    traffic: OpenLoop
    watch: Watch
    memory: tuple[int, int]
    """Resident memory before and after."""
    recovery_s: float
    """Seconds from the last request until a single client has its former latency."""

    @property
    def saturation(self) -> float:
        return (self.before.throughput + self.after.throughput) / 2

    def during(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """Return the exchanges that were due during the overload."""
        return [each for each in exchanges if self.began <= each.due < self.began + self.seconds]


def measure(ours: Contender, times: float, seconds: float, saturation_s: float) -> Overload:
    """Measure a server that is warm and resumed."""
    pid, target = ours.server.process.pid, ours.target
    progress("saturation")
    before = closed_loop(target, _CLIENTS, saturation_s, 2)
    alone_s = [_alone_s(target)[1] for _ in range(50)]
    resident = resident_bytes(pid)
    rate = times * before.throughput
    progress(f"{rate:.0f} requests a second for {seconds:.0f} s")
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        beside.submit(time.perf_counter).result()  # wait until it has started
        watching = beside.submit(watch, target.port, pid, seconds + _TAIL_S)
        began = time.perf_counter()
        found = send_open_loop(target, rate, seconds, max_connections=_CONNECTIONS)
        progress("recovery")
        recovery_s = max(0.0, _recovered_at(target, quantile(alone_s, 0.95), 10) - (began + seconds))
        watched = watching.result()
    progress("saturation again")
    after = closed_loop(target, _CLIENTS, saturation_s, 2)
    progress("")
    return Overload(before, after, alone_s, rate, seconds, began, found, watched, (resident, resident_bytes(pid)), recovery_s)


def _alone_s(target: Target) -> tuple[int, float]:
    began = time.perf_counter()
    ((status, _),) = ask(Target(target.port, target.path, target.bodies[:1], target.content_type))
    return status, time.perf_counter() - began


def _recovered_at(target: Target, usual_s: float, in_a_row: int) -> float:
    """Return the time of the first of several answers in a row within 1.25 times the usual latency."""
    quick: list[float] = []
    while len(quick) < in_a_row:
        status, took_s = _alone_s(target)
        quick = [*quick, time.perf_counter()] if status == 200 and took_s < 1.25 * usual_s else []
    return quick[0]


def verdicts(run: Overload) -> Iterator[Verdict]:
    exchanges = run.traffic.exchanges
    outcomes = Counter(each.outcome for each in exchanges)
    accepted = [each.latency_s for each in exchanges if each.outcome == "200"]
    refused = [each for each in exchanges if each.outcome == "429"]
    refusal_s = quantile([each.latency_s for each in refused], 0.99)
    yield Verdict("offered", run.rate, f"{run.rate:.0f} a second, {run.rate / run.saturation:.1f} x saturation")
    yield Verdict(
        "saturation", run.saturation, f"{run.before.throughput:.1f} a second before, {run.after.throughput:.1f} after"
    )
    yield Verdict("refusals, p99", refusal_s, _ms(refusal_s), "< 100 ms", refusal_s < 0.1)
    waits = Counter(each.retry_after for each in refused)
    told = sum(count for wait, count in waits.items() if wait.isdecimal() and int(wait) >= 1)
    shown = ", ".join(f"{wait or 'none'}: {count}" for wait, count in sorted(waits.items()))
    share = told / len(refused) if refused else math.nan
    yield Verdict("refusals with Retry-After", share, f"{share:.0%} (s: {shown})", "100 %", share == 1)
    done = sum(each.outcome == "200" and each.ended < run.began + run.seconds for each in exchanges)
    goodput = done / run.seconds / run.saturation
    yield Verdict("goodput over saturation", goodput, f"{goodput:.1%}", ">= 85 %", goodput >= 0.85)
    p99 = quantile(accepted, 0.99)
    yield Verdict("accepted, p99", p99, _ms(p99), f"<= {_DEADLINE_S:.0f} s", p99 <= _DEADLINE_S)
    others = {outcome: count for outcome, count in outcomes.items() if outcome not in ("200", "429")}
    number = sum(others.values())
    yield Verdict("errors other than 429, resets", number, str(others or 0), "0", number == 0)
    yield from _health_verdicts(run)
    yield from _memory_verdicts(run)
    yield Verdict("back to usual latency", run.recovery_s, f"{run.recovery_s:.1f} s", "<= 5 s", run.recovery_s <= 5)
    late_s, share = quantile(run.traffic.lateness_s, 0.99), run.traffic.cpu_s / run.traffic.seconds
    yield Verdict("generator, of a core", share, f"{share:.0%}, with up to {run.traffic.most_connections} connections")
    yield Verdict("generator late, p99", late_s, _ms(late_s))


def _health_verdicts(run: Overload) -> Iterator[Verdict]:
    for name, probes in (("live", run.watch.live), ("ready", run.watch.ready)):
        during = run.during(probes)
        p99, failed = quantile([each.latency_s for each in during], 0.99), sum(each.outcome != "200" for each in during)
        shown = f"{_ms(p99)}; {failed} of {len(during)} failed"
        yield Verdict(f"/health/{name}, p99", p99, shown, "< 50 ms, 0 failed", p99 < 0.05 and not failed)


def _memory_verdicts(run: Overload) -> Iterator[Verdict]:
    most = max(sample.accepted for sample in run.watch.samples)
    yield Verdict("images accepted, at most", most, f"{most:.0f}", f"<= {_QUEUE}", most <= _QUEUE)
    before, after = run.memory
    peak = max(sample.resident_bytes for sample in run.watch.samples) - before
    yield Verdict("memory, at the peak", peak, f"{_mib(before)} + {_mib(peak)}", "+ <= 256 MiB", peak <= 256 * 2**20)
    yield Verdict("memory, after", after - before, f"+ {_mib(after - before)}", "+ <= 64 MiB", after - before <= 64 * 2**20)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def main() -> int:
    arguments = _arguments()
    model = next(model for model in MODELS if model.name == arguments.model)
    images = [file.read_bytes() for file in WEB.files(_WORK / "images")]
    settings = {
        "cache_dir": _WORK / "cache",
        "max_inflight_images": _QUEUE,
        "request_timeout_s": _DEADLINE_S,
        "log_level": "warning",
    }
    started = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    with (
        contenders(model.directory(_WORK / "models"), (), model.peer_batch_size, images, _WORK, **settings) as (ours,),
        ours.at_work(),
    ):
        run = measure(ours, arguments.times, arguments.seconds, arguments.saturation_seconds)
    found = list(verdicts(run))
    note = f"{arguments.times:g} times saturation for {arguments.seconds:g} s"
    command = " ".join(["python -m benchmarks.overload", *sys.argv[1:]])
    report = {"machine": machine.describe(), "command": command, "started": started}
    return conclude(f"Overload: {model.title}", note, found, arguments.output, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [model.name for model in MODELS]
    parser.add_argument("--model", choices=names, default=names[0], help=", ".join(names))
    parser.add_argument("--times", type=float, default=4.0, help="offered load in multiples of saturation")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the overload")
    parser.add_argument("--saturation-seconds", type=float, default=15.0, help="length of each measurement of saturation")
    parser.add_argument("--output", type=Path, default=_WORK / "overload.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Record: the measurements at one level of load, and their summary."""

import json
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.bench.load import UNANSWERED, Exchange

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "max": 1.0}

_KINDS = {
    "BadAnswer": "not an HTTP answer",
    "BrokenPipeError": "connection lost",
    "ConnectionAbortedError": "connection lost",
    "ConnectionRefusedError": "connection refused",
    "ConnectionResetError": "connection lost",
    "TimeoutError": "no answer in time",
    UNANSWERED: "unanswered when stopped",
}
_TIMING = re.compile(rb"\b(decode_wait|decode|queue|inference|total);dur=([0-9]{1,9}(?:\.[0-9]{1,6})?)")
_EXAMPLE_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Level:
    """Load of one kind: clients that wait for their answers, or requests at a rate."""

    clients: int = 0
    rate: float = 0.0
    """Requests a second, if there are no clients."""

    @property
    def name(self) -> str:
        if self.clients:
            return f"{self.clients} client{'s' if self.clients > 1 else ''}"
        return f"{self.rate:g}/s"


class Record:
    """Outcomes of the requests that were due between two times of `time.perf_counter`.

    Latencies count from the due time to the end of the answer, also if that comes later. Throughput is of the answers that came
    between the two times.
    """

    def __init__(self, since: float, end: float) -> None:
        self.since, self.end = since, end
        self.latencies_s = array("d")
        """Of answers with a status of 2xx, in the order in which they came."""
        self.lateness_s = array("d")
        """Delays of the generator until each request had its place among the connections."""
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, bytes] = {}
        self.timed = 0
        self.timings_ms: defaultdict[str, float] = defaultdict(float)
        """Sums of the times that `timed` answers state."""

    def add(self, exchange: Exchange) -> None:
        """Take account of one outcome."""
        succeeded = exchange.outcome.startswith("2") and exchange.outcome.isdecimal()
        if succeeded and self.since <= exchange.ended <= self.end:
            self.answered += 1
        if not self.since <= exchange.due < self.end:
            return
        if exchange.outcome != UNANSWERED:  # whose wait is unknown
            self.lateness_s.append(exchange.lateness_s)
        if not succeeded:
            kind = _KINDS.get(exchange.outcome, exchange.outcome)
            self.errors[kind] += 1
            self.examples.setdefault(kind, exchange.refusal)
            return
        self.latencies_s.append(exchange.latency_s)
        if found := _TIMING.findall(exchange.server_timing):
            self.timed += 1
            for name, value in found:
                self.timings_ms[name.decode()] += float(value)


@dataclass(frozen=True, slots=True)
class LevelResult:
    """Summary of one level."""

    level: Level
    seconds: float
    """Seconds that were measured, without the warm-up and the wait for the last answers."""
    latencies_s: Sequence[float] = field(repr=False)
    """In ascending order."""
    throughput: float
    """Answers with a status of 2xx a second."""
    errors: dict[str, int]
    examples: dict[str, str]
    """Beginning of the first answer of each kind of error."""
    timings_ms: dict[str, float]
    """Mean times in the service, as the header `Server-Timing` has them."""
    lateness_p99_s: float | None
    """Of an open loop: what 99% of the requests waited at most for their place among the connections."""
    generator_share: float
    """Share of one core that this process used."""
    mean_batch: float | None = None
    """Images in a batch of the service, all of its clients together."""
    metrics_missing: str = ""
    """Reason for which the mean is unknown."""
    full_at: int = 0
    """Most connections that this process may have, if requests had to wait for one of them."""

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def as_json(self) -> dict[str, Any]:
        """Return all but the single latencies, times in seconds unless named otherwise."""
        return {
            "loop": "closed" if self.level.clients else "open",
            "clients": self.level.clients or None,
            "rate_per_s": self.level.rate or None,
            "measured_s": round(self.seconds, 6),
            "requests": len(self.latencies_s) + self.failed,
            "succeeded": len(self.latencies_s),
            "failed": self.failed,
            "throughput_per_s": round(self.throughput, 3),
            "latency_s": {name: _rounded(value) for name, value in percentiles(self.latencies_s).items()},
            "latency_at_percent_s": _at_percents(self.latencies_s),
            "errors": [{"kind": kind, "count": count, "example": self.examples[kind]} for kind, count in self.errors.items()],
            "mean_batch_images": _rounded(self.mean_batch),
            "metrics_missing": self.metrics_missing or None,
            "server_timing_mean_ms": self.timings_ms,
            "generator_share_of_a_core": round(self.generator_share, 4),
            "generator_late_p99_s": _rounded(self.lateness_p99_s),
            "connections_full_at": self.full_at or None,
        }


def summarize(
    level: Level,
    record: Record,
    cpu_s: float,
    *,
    mean_batch: float | None = None,
    metrics_missing: str = "",
    full_at: int = 0,
) -> LevelResult:
    """Return the summary of a record."""
    seconds = record.end - record.since
    late = [] if level.clients else sorted(record.lateness_s)  # clients that wait have no due times to be late for
    return LevelResult(
        level=level,
        seconds=seconds,
        latencies_s=array("d", sorted(record.latencies_s)),
        throughput=record.answered / seconds,
        errors=dict(record.errors.most_common()),
        examples={kind: _example(text) for kind, text in record.examples.items()},
        timings_ms={name: round(total / record.timed, 3) for name, total in record.timings_ms.items()},
        lateness_p99_s=at_share(late, 0.99) if late else None,
        generator_share=cpu_s / seconds,
        mean_batch=mean_batch,
        metrics_missing=metrics_missing,
        full_at=full_at,
    )


def percentiles(ascending: Sequence[float]) -> dict[str, float | None]:
    """Return the percentiles of values in ascending order; None if there are none."""
    return {name: at_share(ascending, share) if ascending else None for name, share in PERCENTILES.items()}


def at_share(ascending: Sequence[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them does not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _at_percents(ascending: Sequence[float]) -> list[float]:
    return [round(at_share(ascending, percent / 100), 6) for percent in range(101)] if ascending else []


def _example(text: bytes) -> str:
    try:
        shown = str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = text.decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in shown[:_EXAMPLE_LENGTH]).strip()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

"""Table of results, in Markdown."""

from collections.abc import Iterable

from benchmarks.simulation.run import Result
from benchmarks.simulation.tally import ANSWERED, EXPIRED, LOST, REFUSED, UNAVAILABLE

HEADING = (
    "| | answers a second | p50, p99 ms | worst p99 of 5 s | refused | lost | expired | mean batch "
    "| loops, decoders, engines busy | replicas, at the end |"
)
_SLICE_S = 5.0


def row(result: Result) -> str:
    """Return the row of a result."""
    outcomes, requests = result.outcomes, max(1, result.outcomes.total())
    refused = (outcomes[REFUSED] + outcomes[UNAVAILABLE]) / requests
    cells = (
        result.scenario.name,
        f"{result.throughput:,.0f}",
        f"{_ms(result.latency_s(0.50))}, {_ms(result.latency_s(0.99))}",
        _ms(_worst(result)),
        f"{refused:.2%}" if refused else "0",
        str(outcomes[LOST]),
        str(outcomes[EXPIRED]),
        f"{result.mean_batch:.1f}",
        ", ".join(f"{share:.0%}" for share in (result.loops, result.decoders, result.engines)),
        f"{result.replicas:.1f}, {result.moments[-1].replicas}",
    )
    return f"| {' | '.join(cells)} |"


def table(results: Iterable[Result]) -> Iterable[str]:
    """Yield the lines of a table."""
    yield HEADING
    yield "|" + "---|" * (HEADING.count("|") - 1)
    yield from map(row, results)


def _worst(result: Result) -> float:
    """Return the largest p99 of the answers in five seconds."""
    slices: dict[int, list[float]] = {}
    for each in result.counted:
        if each.outcome == ANSWERED:
            slices.setdefault(int(each.at // _SLICE_S), []).append(each.latency_s)
    return max((sorted(times)[int(0.99 * len(times))] for times in slices.values()), default=float("nan"))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}"

"""View of a measurement in a terminal: a table that grows while it runs, and bars of its latencies at the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.bench.axis import LogAxis, milliseconds, tick_label
from app.bench.record import PERCENTILES, Level, LevelResult, Record, at_share, percentiles

UNITS = "latencies in ms; batch: images in a batch of the service"
"""Line below the table."""

_PLAIN_S = 5.0
"""Seconds between two lines where there is no terminal."""

_FEW = 100
"""Answers below which the 99th percentile is the slowest of them, or nearly."""

_SHORTEST_S = 0.2
"""Seconds of which a throughput says something."""

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*#@"
_WIDTH = 60


class TerminalView:
    """Shows levels while they run: redrawn in place on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._results: list[LevelResult] = []
        self._record: Record | None = None
        self._seen = 0
        self._at = time.perf_counter()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show levels inside the block."""
        if not self._console.is_terminal:
            yield
            return
        # refreshed by `look` alone: a thread that draws would take time from the generator
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            yield

    def look(self, level: Level, record: Record) -> None:
        now = time.perf_counter()
        if record is not self._record:
            self._record, self._seen, self._at = record, 0, now
        elif now - self._at < (_PLAIN_S if self._live is None else _SHORTEST_S):
            return
        line = self._line(level, record, now)
        if self._live is None:
            self._console.print(line, highlight=False, markup=False)
        else:
            finished: list[RenderableType] = [table(self._results), Text(UNITS)] if self._results else []
            self._live.update(Group(*finished, Text(line)), refresh=True)
        self._seen, self._at = len(record.latencies_s), now

    def _line(self, level: Level, record: Record, now: float) -> str:
        """Return the state of a level, with what came since the last line."""
        line = f"{level.name}: {_state(record, now)}"
        recent, seconds = record.latencies_s[self._seen :], now - max(self._at, record.since)
        if recent and seconds >= _SHORTEST_S:
            line += f"; now {len(recent) / seconds:,.1f}/s, p50 {milliseconds(at_share(sorted(recent), 0.5))} ms"
        return line + (f"; {failed:,} failed" if (failed := record.errors.total()) else "")

    def finish(self, result: LevelResult) -> None:
        self._results.append(result)
        if self._live is None:
            line = f"{result.level.name}: {result.throughput:,.1f}/s, {result.failed:,} failed"
            self._console.print(line, highlight=False, markup=False)


def _state(record: Record, now: float) -> str:
    if now < record.since:
        return f"warming up, {record.since - now:.0f} s left"
    if now < record.end:
        return f"{record.end - now:.0f} s left"
    return "waiting for the last answers"


def table(results: Sequence[LevelResult]) -> Table:
    """Return a table with a row for each level."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("load")
    for name in ("answers/s", *PERCENTILES, "failed", "batch"):
        shown.add_column(name, justify="right")
    for result in results:
        latencies = (("-" if value is None else milliseconds(value)) for value in percentiles(result.latencies_s).values())
        batch = "-" if result.mean_batch is None else f"{result.mean_batch:.1f}"
        shown.add_row(result.level.name, f"{result.throughput:,.1f}", *latencies, f"{result.failed:,}", batch)
    return shown


def remarks(results: Sequence[LevelResult]) -> Iterator[str]:
    """Yield what the table leaves out: the steps in the service, errors by kind, and what could not be measured."""
    for result in results:
        if result.timings_ms:
            steps = ", ".join(f"{name} {value:g} ms" for name, value in result.timings_ms.items())
            yield f"{result.level.name}: in the service, on average: {steps}"
        for kind, count in result.errors.items():
            example = result.examples[kind]
            yield f"{result.level.name}: {count:,} x {kind}{f': {example}' if example else ''}"
    for reason in dict.fromkeys(result.metrics_missing for result in results if result.metrics_missing):
        yield f"sizes of batches are unknown: {reason}"
    for result in results:
        if result.full_at:
            places = f"one of {result.full_at:,} connections; `ulimit -n` allows more, up to 10,000"
            yield f"{result.level.name}: requests waited for {places}"
        if 0 < (count := len(result.latencies_s)) < _FEW:
            yield f"{result.level.name}: only {count} answers were measured: p99 is the slowest or near it; more --seconds help"
    if results:
        yield f"this generator took up to {max(result.generator_share for result in results):.0%} of one core"
    late = [result.lateness_p99_s for result in results if result.lateness_p99_s is not None]
    if late:
        yield f"and sent 99% of the requests at most {milliseconds(max(late))} ms late, which the latencies include"


def bars(results: Sequence[LevelResult], *, ascii_only: bool = False) -> list[str]:
    """Return lines that show how often each latency occurred, one for each level, above a logarithmic axis."""
    results = [result for result in results if result.latencies_s]
    if not results:
        return []
    axis = LogAxis.around([value for result in results for value in (result.latencies_s[0], result.latencies_s[-1])])
    name_width = max(len(result.level.name) for result in results)
    marks = _ASCII_BARS if ascii_only else _BARS
    lines = [f"{result.level.name:>{name_width}} {_bar(result.latencies_s, axis, marks)}" for result in results]
    return [*lines, f"{'':{name_width}} {_labels(axis)}".rstrip()]


def _bar(latencies_s: Sequence[float], axis: LogAxis, marks: str) -> str:
    counts = [0] * _WIDTH
    for value in latencies_s:
        counts[min(_WIDTH - 1, int(axis.place(value) * _WIDTH))] += 1
    highest = max(counts)
    # rounded up: a single slow request must be seen
    return "".join(marks[-(-count * (len(marks) - 1) // highest)] for count in counts)


def _labels(axis: LogAxis) -> str:
    """Return the labels of the ticks at their places, without those that would touch the one before."""
    line = ""
    for tick in axis.ticks():
        column = min(_WIDTH - 1, int(axis.place(tick) * _WIDTH))
        if column >= len(line) + 2 or not line:
            line = f"{line:{column}}|{tick_label(tick)}"
    return line

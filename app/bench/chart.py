"""Picture of a measurement: how the latencies of each level are distributed, and the throughput of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from app.bench.axis import LogAxis, milliseconds, nice_ceiling, tick_label
from app.bench.drawing import Box, Drawing, Line, Point, Text
from app.bench.record import LevelResult, at_share

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#222222")
"""Told apart with every kind of colour vision (Okabe and Ito)."""

MAX_LEVELS = len(_COLOURS)
SUFFIXES = (".svg", ".png")

_WIDTH, _TOP, _PLOT_HEIGHT = 960, 76, 250
_LEFT, _MIDDLE = (62, 540), (690, 870)
"""Left and right edges of both plots."""

_BOTTOM = _TOP + _PLOT_HEIGHT
_LEGEND_ROW = 20
_TITLE_LENGTH = 90
_STEPS = 200
_GRID, _AXIS = "#e3e3e3", "#888888"

Shapes = Iterator[Line | Box | Text]


def write(file: Path, title: str, results: Sequence[LevelResult]) -> None:
    """Write the picture as SVG or PNG, by the suffix of the file.

    Raises:
        OSError: the file cannot be written.
    """
    drawing = draw(title, results)
    if file.suffix.lower() == ".png":
        file.write_bytes(drawing.png())
    else:
        file.write_text(drawing.svg(), encoding="utf-8")


def draw(title: str, results: Sequence[LevelResult]) -> Drawing:
    """Return the picture; levels without an answer have no curve."""
    shapes = [
        Text((_LEFT[0], 24), title if len(title) <= _TITLE_LENGTH else f"{title[:_TITLE_LENGTH]}...", 16, "#111111"),
        *_distribution(results),
        *_throughput(results),
        *_legend(results),
    ]
    return Drawing(_WIDTH, _BOTTOM + 60 + _LEGEND_ROW * len(results), shapes)


def _distribution(results: Sequence[LevelResult]) -> Shapes:
    """Draw for each latency the share of requests that were answered within it."""
    yield Text((_LEFT[0], 52), "Share of requests answered within a latency", 13)
    left, right = _LEFT
    for percent in (0, 25, 50, 75, 90, 100):
        y = _BOTTOM - percent / 100 * _PLOT_HEIGHT
        yield Line([(left, y), (right, y)], _GRID if percent else _AXIS)
        yield Text((left - 8, y), f"{percent} %", 11, anchor="end")
    yield Text(((left + right) / 2, _BOTTOM + 40), "latency (logarithmic)", 12, anchor="middle")
    ends = [latency_s for result in results for latency_s in (*result.latencies_s[:1], *result.latencies_s[-1:])]
    if not ends:
        return
    axis = LogAxis.around(ends)
    for value in _spaced(axis):
        x = left + axis.place(value) * (right - left)
        yield Line([(x, _TOP), (x, _BOTTOM)], _GRID)
        yield Text((x, _BOTTOM + 16), tick_label(value), 11, anchor="middle")
    for result, colour in zip(results, _COLOURS, strict=False):
        if result.latencies_s:
            yield Line(list(_curve(result.latencies_s, axis)), colour, 2)


def _spaced(axis: LogAxis) -> list[float]:
    """Return the ticks whose labels do not touch."""
    ticks = axis.ticks()
    powers = [tick for tick in ticks if f"{tick:e}".startswith("1.")]
    return ticks if len(ticks) <= 9 else powers


def _curve(ascending: Sequence[float], axis: LogAxis) -> Iterator[Point]:
    left, right = _LEFT
    for step in range(_STEPS + 1):
        share = step / _STEPS
        yield left + axis.place(at_share(ascending, share)) * (right - left), _BOTTOM - share * _PLOT_HEIGHT


def _throughput(results: Sequence[LevelResult]) -> Shapes:
    yield Text((_MIDDLE[0], 52), "Throughput", 13)
    left, right = _MIDDLE
    highest = nice_ceiling(max((result.throughput for result in results), default=0) or 1)
    slot = _PLOT_HEIGHT / max(1, len(results))
    for index, (result, colour) in enumerate(zip(results, _COLOURS, strict=False)):
        middle, half = _TOP + (index + 0.5) * slot, min(14, 0.35 * slot)
        end = left + result.throughput / highest * (right - left)
        yield Box(left, middle - half, end, middle + half, colour)
        yield Text((left - 8, middle), result.level.name, 12, anchor="end")
        yield Text((end + 6, middle), f"{result.throughput:,.1f}", 12)
    yield Line([(left, _TOP), (left, _BOTTOM)], _AXIS)
    for value in (0, highest / 2, highest):
        x = left + value / highest * (right - left)
        yield Line([(x, _BOTTOM), (x, _BOTTOM + 4)], _AXIS)
        yield Text((x, _BOTTOM + 16), f"{value:g}", 11, anchor="middle")
    yield Line([(left, _BOTTOM), (right, _BOTTOM)], _AXIS)
    yield Text(((left + right) / 2, _BOTTOM + 40), "answers a second", 12, anchor="middle")


def _legend(results: Sequence[LevelResult]) -> Shapes:
    for index, (result, colour) in enumerate(zip(results, _COLOURS, strict=False)):
        y = _BOTTOM + 66 + index * _LEGEND_ROW
        yield Box(_LEFT[0], y - 5, _LEFT[0] + 18, y + 5, colour)
        yield Text((_LEFT[0] + 26, y), result.level.name, 12)
        yield Text((_LEFT[0] + 120, y), _figures(result), 12)


def _figures(result: LevelResult) -> str:
    parts = []
    if latencies_s := result.latencies_s:
        shown = (f"{name} {milliseconds(at_share(latencies_s, share))} ms" for name, share in (("p50", 0.5), ("p99", 0.99)))
        parts += [*shown, f"max {milliseconds(latencies_s[-1])} ms"]
    if result.mean_batch is not None:
        parts.append(f"{result.mean_batch:.1f} images a batch")
    parts.append(f"{result.failed:,} of {len(latencies_s) + result.failed:,} requests failed")
    return ", ".join(parts)

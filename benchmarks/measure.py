"""Interleaved rounds: cases run turn by turn, so that noise of the machine affects all alike."""

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Case = tuple[str, Callable[[], float]]
"""Name and function of one measurement."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one case, one a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: "Samples") -> float:
        """Return the median of the ratios within each round, which noise affects least; infinite over nothing."""
        pairs = zip(self.values, other.values, strict=True)
        return statistics.median(mine / theirs if theirs else math.inf for mine, theirs in pairs)

    def as_json(self) -> dict[str, object]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


def interleaved(what: str, cases: Sequence[Case], rounds: int) -> dict[str, Samples]:
    """Measure every case once a round, forwards and backwards in turn."""
    values: dict[str, list[float]] = {name: [] for name, _ in cases}
    for number in range(rounds):
        for name, measure in cases if number % 2 == 0 else reversed(cases):
            progress(f"{what}, round {number + 1} of {rounds}: {name}")
            values[name].append(measure())
    progress("")
    return {name: Samples(tuple(row)) for name, row in values.items()}


def progress(line: str) -> None:
    """Show progress on standard error: in place on a terminal, line by line in a log."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
    elif line:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

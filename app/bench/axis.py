"""Axes of charts: places of values, and the round values that are written beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogAxis:
    """Logarithmic axis of seconds."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> "LogAxis":
        """Return an axis that all values are on, from one round value to another."""
        shortest, longest = max(min(values), 1e-6), max(*values, 1e-6)
        rounds = _rounds(shortest / 10, longest * 10)
        low = max(value for value in rounds if value <= shortest)
        return cls(low, min(value for value in rounds if value >= longest and value > low))

    def place(self, value: float) -> float:
        """Return where a value is, from 0 to 1."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return min(1.0, share)

    def ticks(self) -> list[float]:
        """Return the round values on the axis: 1, 2 and 5 times powers of ten."""
        return [value for value in _rounds(self.low, self.high) if self.low * 0.999 <= value <= self.high * 1.001]


def _rounds(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]


def nice_ceiling(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten, the smallest that is not below a positive value."""
    return min(round_value for round_value in _rounds(value / 10, value * 10) if round_value >= value)


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, with three digits or all before the point."""
    value = seconds * 1000
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def tick_label(seconds: float) -> str:
    """Return a round time with its unit."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"

"""Report sections, as Markdown tables and as JSON."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bench.load import Load
from benchmarks.measure import Samples


@dataclass(frozen=True, slots=True)
class Row:
    """Table row: names, numbers, and text for each column."""

    names: tuple[str, ...]
    numbers: Mapping[str, float]
    shown: Mapping[str, str]
    samples: Samples | None

    def as_json(self) -> dict[str, object]:
        raw = {} if self.samples is None else {"samples": self.samples.as_json()}
        return {"names": list(self.names), **self.numbers, **raw}


@dataclass(frozen=True, slots=True)
class Section:
    """Rows measured in the same interleaved rounds."""

    title: str
    note: str
    rows: Sequence[Row]

    def as_json(self) -> dict[str, object]:
        return {"title": self.title, "note": self.note, "rows": [row.as_json() for row in self.rows]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Measured value against a goal, which may be empty."""

    what: str
    value: float
    shown: str
    goal: str = ""
    met: bool = True

    def row(self) -> Row:
        verdict = ("met" if self.met else "MISSED") if self.goal else ""
        return Row(
            (self.what,),
            {"value": self.value, "met": self.met},
            {"measured": self.shown, "goal": self.goal, "verdict": verdict},
            None,
        )


def verdict_section(title: str, note: str, verdicts: Sequence[Verdict]) -> Section:
    """Return a section whose note ends with the number of goals met."""
    goals = [verdict for verdict in verdicts if verdict.goal]
    met = sum(verdict.met for verdict in goals)
    return Section(title, f"{note}; {met} of {len(goals)} goals met", [verdict.row() for verdict in verdicts])


def conclude(title: str, note: str, verdicts: Sequence[Verdict], output: Path, report: Mapping[str, object]) -> int:
    """Print the verdicts, write the report to `output`, and return the exit status."""
    section = verdict_section(title, note, verdicts)
    sys.stdout.write(as_markdown(section) + "\n")
    output.write_text(json.dumps({**report, "section": section.as_json()}, indent=1) + "\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


def as_markdown(section: Section) -> str:
    names = len(section.rows[0].names)
    columns = list(dict.fromkeys(column for row in section.rows for column in row.shown))
    lines = [
        f"### {section.title}",
        "",
        section.note,
        "",
        f"| {' | '.join([*[''] * names, *columns])} |",
        f"|{'---|' * (names + len(columns))}",
    ]
    lines += [f"| {' | '.join([*row.names, *(row.shown.get(column, '') for column in columns)])} |" for row in section.rows]
    return "\n".join([*lines, ""])


def floor_rows(samples: Mapping[str, Samples]) -> list[Row]:
    """Return rows of rates in billions."""
    rows = []
    for name, each in samples.items():
        shown = f"{each.median / 1e9:.0f} [{min(each.values) / 1e9:.0f}..{max(each.values) / 1e9:.0f}]"
        rows.append(Row((name,), {"median": each.median}, {"billions": shown}, each))
    return rows


def rate_rows(
    samples: Mapping[str, Samples], base: Samples, shares: Mapping[str, Mapping[str, float]] | None = None
) -> list[Row]:
    """Return rows of ratios, which noise affects least, and rates.

    Args:
        shares: for each heading of a further column, the share of every row.
    """
    rows = []
    for name, each in samples.items():
        ratio = each.over(base)
        shown = {"x": f"{ratio:.2f}", "a second": f"{each.median:.1f} [{min(each.values):.1f}..{max(each.values):.1f}]"}
        further = {heading: values[name] for heading, values in (shares or {}).items()}
        shown |= {heading: f"{value:.0%}" for heading, value in further.items()}
        rows.append(Row((name,), {"median": each.median, "ratio": ratio, **further}, shown, each))
    return rows


def load_rows(samples: Mapping[str, Samples], loads: Mapping[str, Sequence[Load]], layouts: Mapping[str, str]) -> list[Row]:
    """Return rows of throughput and latencies, with the ratio to the pipeline if it was measured."""
    rows = []
    pipeline = samples.get("pipeline")
    for name, each in samples.items():
        if name not in loads:
            unit = "s" if "alone" in name else "a second"
            shown = f"{each.median * 1000:.1f} ms" if unit == "s" else f"{each.median:.1f}"
            rows.append(Row((name, ""), {"median": each.median}, {"p50 ms" if unit == "s" else "a second": shown}, each))
            continue
        who, _, offered = name.partition(", ")
        layout = layouts.get(who, "")
        p50, p95, p99 = (statistics.median(getattr(load, key) for load in loads[name]) for key in ("p50", "p95", "p99"))
        errors = sum(load.errors for load in loads[name])
        share = statistics.median(load.generator_share for load in loads[name])
        numbers = {"throughput": each.median, "p50_s": p50, "p95_s": p95, "p99_s": p99, "errors": errors, "generator": share}
        shown = {
            "a second": f"{each.median:.1f} [{min(each.values):.1f}..{max(each.values):.1f}]",
            "p50 ms": f"{p50 * 1000:.0f}",
            "p95 ms": f"{p95 * 1000:.0f}",
            "p99 ms": f"{p99 * 1000:.0f}",
            "errors": str(errors),
            "generator, of a core": f"{share:.1%}",
        }
        if pipeline is not None:
            numbers["over_pipeline"] = each.over(pipeline)
            shown = {"x pipeline": f"{numbers['over_pipeline']:.2f}", **shown}
        rows.append(
            Row((f"{who} {layout}".strip(), offered if "of" in offered else f"{offered} clients"), numbers, shown, each)
        )
    return rows

"""timm's published weights: what its registry holds for each `architecture.tag` that is supported here."""

import difflib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

WEIGHTS_FILE = Path(__file__).with_name("timm_weights.tsv")


def _numbers(cell: str) -> list[float]:
    return [float(number) for number in cell.split()]


def _sizes(cell: str) -> list[int]:
    return [int(number) for number in cell.split()]


COLUMNS: dict[str, Callable[[str], Any]] = {
    "name": str,
    "num_classes": int,
    "input_size": _sizes,
    "crop_pct": float,
    "crop_mode": str,
    "interpolation": str,
    "mean": _numbers,
    "std": _numbers,
}
"""Columns of the table, with the parser of a cell: all but the first are keys of a `pretrained_cfg`."""


def published_cfg(architecture: str) -> dict[str, Any]:
    """Return what timm's `pretrained_cfg` holds for `name.tag`, or for the default tag of a bare name.

    Raises:
        ValueError: timm has no such architecture, or publishes other tags of it.
    """
    return {key: value for key, value in _row(architecture).items() if key != "name"}


def _row(architecture: str) -> dict[str, Any]:
    name, _, tag = architecture.partition(".")
    tags = [row.partition(".")[2] for row in _table() if row.partition(".")[0] == name]
    if not tags:
        near = difflib.get_close_matches(name, dict.fromkeys(row.partition(".")[0] for row in _table()), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "timm.list_models('vit*') lists those there are"
        raise ValueError(f"timm has no architecture {name}; {advice}")
    if tag and tag not in tags:
        raise ValueError(f"timm has no weights {name}.{tag}; it has {', '.join(tags)}; without a tag it is {tags[0]}")
    return _table()[f"{name}.{tag or tags[0]}"]


@cache
def _table() -> dict[str, dict[str, Any]]:
    """Rows by name; of an architecture's the default one first."""
    header, *lines = WEIGHTS_FILE.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    rows = (dict(zip(columns, line.split("\t"), strict=True)) for line in lines)
    return {row["name"]: {column: COLUMNS[column](cell) for column, cell in row.items()} for row in rows}

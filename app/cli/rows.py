"""Predictions on standard output, image by image: JSON, CSV, or a table on a terminal."""

import csv
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
"""`path`, and `predictions` or `error`."""

Write = Callable[[Row], None]
"""Prints the outcome of an image at once."""


class CsvRows:
    """One line for each prediction, in UTF-8, with paths byte for byte as the system has them."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        self._line("path", "rank", "label", "probability", "logit", "error")

    def write(self, row: Row) -> None:
        if "error" in row:
            self._line(row["path"], "", "", "", "", row["error"])
        for rank, prediction in enumerate(row.get("predictions", []), start=1):
            share = "" if prediction["probability"] is None else f"{prediction['probability']:.6f}"
            self._line(row["path"], rank, prediction["label"], share, f"{prediction['logit']:.6g}", "")

    def _line(self, *fields: object) -> None:
        csv.writer(sys.stdout, lineterminator="\n").writerow(fields)
        sys.stdout.flush()


class TableRows:
    """A table for people. Each image is a table of its own, with columns as wide as those of the others."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._header = True

    def write(self, row: Row) -> None:
        table = Table(show_header=self._header, box=None, expand=True)
        table.add_column("image", ratio=3)
        table.add_column("label", ratio=2)
        table.add_column("probability, or value", width=21)
        path = Text(printable(row["path"]))  # paths and labels are not markup
        if "error" in row:
            table.add_row(path, Text(row["error"], style="red"), "")
        for rank, prediction in enumerate(row.get("predictions", [])):
            style = "bold" if rank == 0 else "dim"
            label, share = prediction["label"], prediction["probability"]
            value = f"{prediction['logit']:.6g}" if share is None else f"{share:.1%}"
            table.add_row(path if rank == 0 else "", Text(label, style=style), Text(value, style=style))
        self._header = False
        self._console.print(table)


def printable(path: str) -> str:
    """Return a path with a question mark for each byte that is not UTF-8."""
    return path.encode("utf-8", "replace").decode()

"""Rows of predictions on standard output, one image after another: JSON, CSV, or a table on a terminal."""

import csv
import json
import sys
from io import TextIOWrapper
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
"""`path`, and `predictions` or `error`."""


class Rows(Protocol):
    """Prints the outcome of each image as soon as it is known, or all of them at the end."""

    def write(self, row: Row) -> None:
        """Add an outcome."""

    def close(self) -> None:
        """Print what has not been printed."""


class JsonRows:
    """One JSON object a line. Bytes of a path that are not UTF-8 are lone surrogates, which `os.fsencode` makes bytes again."""

    def write(self, row: Row) -> None:
        """See `Rows`."""
        _print(json.dumps(row) + "\n")

    def close(self) -> None:
        """See `Rows`."""


class CsvRows:
    """A line for each prediction, in UTF-8, with paths byte by byte as the system has them."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        self._line("path", "rank", "label", "probability", "logit", "error")

    def write(self, row: Row) -> None:
        """See `Rows`."""
        if "error" in row:
            self._line(row["path"], "", "", "", "", row["error"])
        for rank, prediction in enumerate(row.get("predictions", []), start=1):
            share = "" if prediction["probability"] is None else f"{prediction['probability']:.6f}"
            self._line(row["path"], rank, prediction["label"], share, f"{prediction['logit']:.6g}", "")

    def close(self) -> None:
        """See `Rows`."""

    def _line(self, *fields: object) -> None:
        csv.writer(sys.stdout, lineterminator="\n").writerow(fields)
        sys.stdout.flush()


class TableRows:
    """A table for people, printed at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._table = Table("picture", "label", "probability, or value")

    def write(self, row: Row) -> None:
        """See `Rows`."""
        path = Text(printable(row["path"]))  # names of files and labels are no markup
        if "error" in row:
            self._table.add_row(path, Text(row["error"], style="red"), "")
        for rank, prediction in enumerate(row.get("predictions", [])):
            style = "bold" if rank == 0 else "dim"
            label, share = prediction["label"], prediction["probability"]
            value = f"{prediction['logit']:.6g}" if share is None else f"{share:.1%}"
            self._table.add_row(path if rank == 0 else "", Text(label, style=style), Text(value, style=style))

    def close(self) -> None:
        """See `Rows`."""
        if self._table.row_count:
            self._console.print(self._table)


def printable(path: str) -> str:
    """Return a path with a question mark for each byte that is not UTF-8."""
    return path.encode("utf-8", "replace").decode()


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

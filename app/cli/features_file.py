"""Parquet file of features, written in parts, so that an interrupted command goes on where it stopped."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.errors import StartError

_ROWS = 256
"""Rows of a part: at most so many images are embedded again after an interruption."""

_METADATA = b"vit-serve"


class FeaturesFile:
    """A file with the columns `path`, `embedding` (a list of float32 of fixed size) and `error`, of which one is null.

    Parts lie in the folder `FILE.parts` until `finish` writes them into the file. Use it as a context manager, which saves the
    last part.

    Args:
        file: the file to write.
        size: count of features.
        made_by: what the features depend on; another run must say the same to go on.

    Raises:
        StartError: the file exists, or its parts were made by another model or with other options.
    """

    def __init__(self, file: Path, size: int, made_by: dict[str, Any]) -> None:
        self._file = file
        self._parts = file.with_name(f"{file.name}.parts")
        said = {_METADATA: json.dumps(made_by, sort_keys=True).encode()}
        columns = {"path": pa.string(), "embedding": pa.list_(pa.float32(), size), "error": pa.string()}
        self._schema = pa.schema(list(columns.items()), metadata=said)
        self._rows: list[dict[str, Any]] = []
        if file.exists():
            raise StartError(f"{file} exists; remove it, or name another file")
        self._parts.mkdir(parents=True, exist_ok=True)
        for part in self._saved():
            found = pq.read_schema(part).metadata or {}
            if found.get(_METADATA) != said[_METADATA]:
                raise StartError(f"{self._parts} is of another model or other options; remove it to begin again")

    def __enter__(self) -> "FeaturesFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    @property
    def done(self) -> set[str]:
        """Paths whose features are saved; failed ones are tried again."""
        done: set[str] = set()
        for part in self._saved():
            table = pq.read_table(part, columns=["path", "error"])
            done.update(row["path"] for row in table.to_pylist() if row["error"] is None)
        return done

    def add(self, path: str, vector: NDArray[np.float32] | None, error: str | None = None) -> None:
        """Add the features of an image, or its error."""
        self._rows.append({"path": path, "embedding": vector, "error": error})
        if len(self._rows) >= _ROWS:
            self.save()

    def save(self) -> None:
        """Save the rows that are not in a part yet."""
        if not self._rows:
            return
        number = max((int(part.stem) for part in self._saved()), default=0) + 1
        part = self._parts / f"{number:08}.parquet"
        unfinished = part.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), unfinished)
        os.replace(unfinished, part)
        self._rows = []

    def finish(self) -> None:
        """Write all parts into the file, and remove them. Of a path that failed before, only the last row stays."""
        self.save()
        last = {row["path"]: part for part in self._saved() for row in pq.read_table(part, columns=["path"]).to_pylist()}
        unfinished = self._file.with_name(f"{self._file.name}.unfinished")
        with pq.ParquetWriter(unfinished, self._schema) as writer:
            for part in self._saved():
                table = pq.read_table(part, schema=self._schema)
                writer.write_table(table.filter(pa.array([last[path] == part for path in table["path"].to_pylist()])))
        os.replace(unfinished, self._file)
        shutil.rmtree(self._parts)

    def _saved(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))

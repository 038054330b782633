"""Files of a checkpoint: their names, how they are found and read, and all that an answer can depend on. Needs no torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.checkpoints.tensors.regular_file import FileError, MissingFile, exists, read_file

SAFETENSORS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLED_SHARDS = "pytorch_model.bin.index.json"
INDEX = ".index.json"
"""End of the name of an index of shards."""

_MAX_JSON_BYTES = 32 << 20
"""Maximum size of a JSON file: ten times the labels of ImageNet-22k, in both directions."""

LABELS = "labels.txt"
"""Labels, one a line in class order, where the configuration has none."""


class CheckpointError(Exception):
    """A checkpoint that cannot be served; the message says what is wrong with which file or key, and what to do."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Argument of `load_checkpoint` to change, such as `activation`; None if it is the model itself."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which file of a checkpoint cannot be read."""
    try:
        yield
    except MissingFile:
        raise CheckpointError(f"{path} is missing") from None
    except FileError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def find_weights(directory: Path) -> Path:
    """Return the file in a directory that holds its weights: one file, or the index of several; safetensors before pickles.

    Raises:
        CheckpointError: there is none.
    """
    for path in (directory / name for name in (SAFETENSORS, SHARDS, PICKLE, PICKLED_SHARDS)):
        with readable(path):
            if exists(path):
                return path
    raise CheckpointError(f"{directory / SAFETENSORS} is missing, and there is no {PICKLE} either")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: missing, unreadable, or not an object.
    """
    try:
        with readable(path):
            content = json.loads(read_file(path, _MAX_JSON_BYTES).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def shards_of(index: Path, weight_map: Any) -> dict[str, Path]:
    """Return the files that an index of shards names, each by the name that it has there.

    Raises:
        CheckpointError: it does not map tensors to files.
    """
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    return {name: index.parent / Path(name).name for name in sorted(set(weight_map.values()))}  # never outside the folder


def files_of(path: Path) -> tuple[Path, ...]:
    """Return every file that loading a checkpoint may read, in a fixed order.

    Args:
        path: the directory of a model, or a bare state dict.

    Raises:
        CheckpointError: there are no weights.
        OSError: the directory cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    configurations = sorted(each for each in path.iterdir() if each.suffix == ".json") if path.is_dir() else ()
    weights = find_weights(path) if path.is_dir() else path
    shards: tuple[Path, ...] = ()
    if weights.name.endswith(INDEX):
        shards = tuple(shards_of(weights, read_json(weights).get("weight_map")).values())
    return (*configurations, *_present(directory / LABELS), weights, *shards)


def _present(path: Path) -> tuple[Path, ...]:
    with readable(path):
        return (path,) if exists(path) else ()

"""Labels: names of classes, in class order, and the file `labels.txt` that gives them where a checkpoint has none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint
from model.checkpoints.files import LABELS, CheckpointError, readable
from model.checkpoints.tensors.regular_file import exists, read_file
from model.config import MAX_CLASSES

_MAX_BYTES = 32 << 20


def placeholders(count: int) -> tuple[str, ...]:
    """Return what transformers calls classes without names.

    Raises:
        ValueError: more classes than any model has.
    """
    if not 1 <= count <= MAX_CLASSES:
        raise ValueError(f"the number of labels must be between 1 and {MAX_CLASSES}, not {count}")
    return tuple(f"LABEL_{index}" for index in range(count))


def are_names(labels: Sequence[str]) -> bool:
    """Return True if labels say more than the numbers of their classes."""
    return bool(labels) and tuple(labels) != placeholders(len(labels))


def name_classes(blueprint: Blueprint, directory: Path) -> Blueprint:
    """Take labels from the configuration, else `labels.txt` beside it, else the list of classes that it was trained on.

    Raises:
        CheckpointError: as `read_labels`.
    """
    if not blueprint.config.num_classes:
        return blueprint
    if are_names(blueprint.labels):
        return replace(blueprint, labels_source="config.json")
    if (labels := read_labels(directory)) is not None:
        return replace(blueprint, labels=labels, labels_source=LABELS)
    if (trained_on := blueprint.trained_on) is not None:
        return replace(blueprint, labels=trained_on.names(), labels_source=str(trained_on))
    return blueprint


def read_labels(directory: Path) -> tuple[str, ...] | None:
    """Read `labels.txt`, one label a line in class order; None where there is none.

    A byte-order mark, blanks around a label and blank lines at the end are no part of it.

    Raises:
        CheckpointError: the file cannot be read, is not UTF-8, or has a blank line where a label should be.
    """
    file = directory / LABELS
    with readable(file):
        if not exists(file):
            return None
        content = read_file(file, _MAX_BYTES)
    if not content.strip():
        raise CheckpointError(f"{file} is empty; write one label a line, in class order")
    lines = [line.strip() for line in _text(file, content).rstrip().split("\n")]
    if "" in lines:
        raise CheckpointError(f"{file}: line {lines.index('') + 1} is blank, where a label should be")
    return tuple(lines)


def as_labels(names: Sequence[Any], key: str) -> tuple[str, ...]:
    """Return the labels that a configuration gives under a key, in class order.

    Raises:
        ValueError: one of them is neither text nor a number.
    """
    for index, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(f"{key} gives class {index} the label {json.dumps(name)}, which is no text")
    return tuple(map(str, names))


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that no answer could carry.

    Raises:
        ValueError: one of them is not Unicode text.
    """
    for index, label in enumerate(labels):
        try:
            label.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the label of class {index} is not Unicode text (half of a surrogate pair): {label!a}") from None


def _text(file: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(_not_utf8(file, f"byte {error.start + 1}")) from None
    if "\0" in text:  # as in UTF-16 without a mark
        raise CheckpointError(_not_utf8(file, f"character {text.index(chr(0)) + 1}"))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf8(file: Path, where: str) -> str:
    return f"{file} is not UTF-8 text ({where}): save it as UTF-8, or convert it: iconv -f <its encoding> -t UTF-8"

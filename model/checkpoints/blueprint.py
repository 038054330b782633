"""Blueprint: all that a library's files say of a model, in our words, before its weights are read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoints.files import CheckpointError
from model.checkpoints.published.trained_on import TrainedOn
from model.checkpoints.tensors.key_map import KeyMap
from model.config import Resampling, ViTConfig
from model.library.library_model import LibraryConfig
from model.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Model to build, and the file of its weights."""

    name: str
    architecture: str
    """Name of the architecture in its library."""
    config: ViTConfig | LibraryConfig
    """Configuration that the stored weights fit."""
    key_map: KeyMap
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    weights: Path
    resampling: Resampling
    """Interpolation of the position embedding to another image size in the library."""
    interpolates: bool = False
    """True if the library takes images of another size than configured without being told."""
    trained_on: TrainedOn | None = None
    """The library's own list of classes, where the checkpoint says that it was trained on it and names none itself."""
    labels_source: str = "none"
    """Origin of the labels; `none` if they are numbers."""
    problem_type: Any = None
    """Value of `problem_type` in a Hugging Face configuration, unchecked."""


@contextmanager
def config_errors(path: Path, field: str | None = None) -> Iterator[None]:
    """Turn a wrong value into a `CheckpointError` that names its file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: {what}", field) from error


def integer(values: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer of a configuration.

    Raises:
        KeyError: it is missing, and there is no default.
        ValueError: it is something else.
    """
    value = _value(values, key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} {value!r} is not a whole number")
    return value


def number(values: dict[str, Any], key: str, default: float | None = None) -> float:
    """Return a finite number of a configuration. Raises as `integer` does."""
    value = _value(values, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} {value!r} is not a number")
    return float(value)


def _value(values: dict[str, Any], key: str, default: float | None) -> Any:
    if key not in values and default is None:
        raise KeyError(key)
    return values.get(key, default)


def truth(values: dict[str, Any], key: str, default: bool) -> bool:
    """A yes or no of a configuration.

    Raises:
        ValueError: it is something else, such as "false" in quotes.
    """
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} {value!r} is neither true nor false")
    return value


def side(value: Any, key: str) -> int:
    """A side in pixels, given as one number or as a square.

    Raises:
        ValueError: neither.
    """
    match value:
        case bool():
            pass
        case int(length) | [int(length)]:
            return length
        case [int(height), int(width)] if height == width:
            return height
    raise ValueError(f"{key} {value!r} is not one number or a square")


def input_size(preprocessing: Preprocessing) -> int:
    """The side of the square that the preprocessing ends in, in pixels.

    Raises:
        ValueError: it ends in something else.
    """
    match preprocessing.output_size:
        case (height, width) if height == width:
            return height
        case size:
            keys = "do_resize, size, do_center_crop and crop_size"
            raise ValueError(f"the preprocessing must end in a square of a fixed size, not {size}: look at {keys}")

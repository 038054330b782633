"""Tensors on disk: safetensors, whole or in shards, and `.pth` files that hold nothing but tensors. Never unpickles code."""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.files import FileError, MissingFile, exists, read_ahead, read_file

SAFETENSORS = "model.safetensors"
SHARDS = "model.safetensors.index.json"

_MAX_JSON_BYTES = 32 << 20
"""Of one JSON file: ten times the labels of ImageNet-22k, in both directions."""

_WRAPPERS = ("model", "state_dict", "model_state", "model_ema")
"""Keys under which training scripts put the state dict, beside an optimizer and the like."""


class CheckpointError(Exception):
    """A checkpoint that cannot be served; the message says what is wrong with which file or key, and what to do."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which file of a checkpoint cannot be read."""
    try:
        yield
    except MissingFile:
        raise CheckpointError(f"{path} is missing") from None
    except FileError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Named tensors, of which the shapes are known before any is read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    _sources: Mapping[str, Path | Tensor]

    def read(self, key: str) -> Tensor:
        """One tensor, as it is stored."""
        source = self._sources[key]
        if isinstance(source, Tensor):
            return source
        with safe_open(source, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


def find_weights(directory: Path) -> Path:
    """The file in a directory that holds its weights: one safetensors file, or the index of several.

    Raises:
        CheckpointError: there is none.
    """
    for path in (directory / SAFETENSORS, directory / SHARDS):
        with readable(path):
            if exists(path):
                return path
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in {".bin", ".pt", ".pth"})
    advice = f"; {pickled[0]} is a pickle: save it as safetensors (save_pretrained of a recent transformers)" if pickled else ""
    raise CheckpointError(f"{directory / SAFETENSORS} is missing{advice}")


def open_weights(path: Path) -> WeightsFile:
    """Open a `.safetensors` file, the index of a sharded one, or a `.pth`, `.pt` or `.bin` of plain tensors.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or needs more than tensors to load.
    """
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    with readable(path):
        read_ahead(path)
    if path.suffix == ".safetensors":
        shapes = _safetensors_shapes(path)
        return WeightsFile(path, shapes, dict.fromkeys(shapes, path))
    if path.suffix in {".pth", ".pt", ".bin"}:
        return _open_pickle(path)
    raise CheckpointError(f"{path} is not a .safetensors or .pth file")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

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


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:  # a file that may not be read is FileNotFoundError to safetensors
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}; copy or download it again") from error


def _open_shards(path: Path) -> WeightsFile:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files")
    shards = {name: path.parent / Path(name).name for name in sorted(set(weight_map.values()))}  # never outside the folder
    shapes: dict[str, tuple[int, ...]] = {}
    sources: dict[str, Path | Tensor] = {}
    for name, shard in shards.items():
        with readable(shard):
            read_ahead(shard)
        for key, shape in _safetensors_shapes(shard).items():
            if weight_map.get(key) == name:
                shapes[key], sources[key] = shape, shard
    lost = sorted(set(weight_map) - set(shapes))
    if lost:
        raise CheckpointError(f"{path} names {lost[0]}, which {weight_map[lost[0]]} does not have")
    return WeightsFile(path, shapes, sources)


def _open_pickle(path: Path) -> WeightsFile:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading it could run any code; on a machine where you trust it, convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False), 'model.safetensors')"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}; copy or download it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict (names with tensors)")
    tensors = {str(key).removeprefix("module."): value for key, value in content.items()}
    return WeightsFile(path, {key: tuple(value.shape) for key, value in tensors.items()}, tensors)

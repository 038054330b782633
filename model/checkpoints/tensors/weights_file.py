"""Tensors on disk: safetensors and what `torch.save` wrote, whole or in shards. Never unpickles code."""

import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints.files import INDEX, CheckpointError, read_json, readable, shards_of
from model.checkpoints.tensors.file_kind import kind_of
from model.checkpoints.tensors.regular_file import open_regular, read_ahead
from model.checkpoints.tensors.state_dict import choose, unwrapped

_CONVERSION = (
    "import torch; keep = lambda x: x if isinstance(x, torch.Tensor) else {{k: t for k, v in "
    "(x.state_dict() if hasattr(x, 'state_dict') else x if isinstance(x, dict) else {{}}).items() "
    "if isinstance(t := keep(v), torch.Tensor) or t}}; "
    "torch.save(keep(torch.load({path!r}, 'cpu', weights_only=False)), {converted!r})"
)
"""Python that keeps tensors, and state dicts of modules, at any depth."""


Stored = Tensor | tuple[Path, str]
"""A tensor, or the safetensors file that has it and its name there."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Named tensors, of which the shapes are known before any is read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, Stored]
    note: str | None = None
    """Choice that was made among the contents of the file."""

    def read(self, key: str) -> Tensor:
        """One tensor, as it is stored."""
        source = self.sources[key]
        if isinstance(source, Tensor):
            return source
        path, name = source
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def tokens(self, key: str) -> int:
        """The number of tokens of an embedding (1, tokens, width); 0 if it is none, or not there."""
        shape = self.shapes.get(key, ())
        return shape[1] if len(shape) == 3 else 0

    def renamed(self, names: Mapping[str, str]) -> "WeightsFile":
        """The same tensors under other names, each mapped to its name now."""
        shapes = {name: self.shapes[key] for name, key in names.items()}
        return replace(self, shapes=shapes, sources={name: self.sources[key] for name, key in names.items()})


def open_weights(path: Path) -> WeightsFile:
    """Open a safetensors file, what `torch.save` wrote, or the index of several of either.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or needs more than tensors to load.
    """
    file = _open_shards(path) if path.name.endswith(INDEX) else _open_file(path)
    try:
        return file.renamed(unwrapped(file.shapes))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _open_file(path: Path) -> WeightsFile:
    try:
        with readable(path):
            read_ahead(path)
            kind = kind_of(path)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return _open_safetensors(path) if kind == "safetensors" else _open_pickle(path)


def _open_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:  # a file that may not be read is FileNotFoundError to safetensors
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}; copy or download it again") from error
    return WeightsFile(path, shapes, {key: (path, key) for key in shapes})


def _open_shards(path: Path) -> WeightsFile:
    weight_map: Any = read_json(path).get("weight_map")
    shards = shards_of(path, weight_map)
    shapes: dict[str, tuple[int, ...]] = {}
    sources: dict[str, Stored] = {}
    for name, shard in shards.items():
        file = _open_file(shard)
        for key, shape in file.shapes.items():
            if weight_map.get(key) == name:
                shapes[key], sources[key] = shape, file.sources[key]
    lost = sorted(set(weight_map) - set(shapes))
    if lost:
        raise CheckpointError(f"{path} names {lost[0]}, which {weight_map[lost[0]]} does not have")
    return WeightsFile(path, shapes, sources)


def _open_pickle(path: Path) -> WeightsFile:
    try:
        # training scripts save their arguments; a Namespace is a name with plain values
        with torch.serialization.safe_globals([Namespace]), open_regular(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe(path, str(error))) from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}; copy or download it again") from error
    try:
        chosen = choose(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a state dict: {error}") from error
    shapes = {key: tuple(value.shape) for key, value in chosen.tensors.items()}
    return WeightsFile(path, shapes, chosen.tensors, chosen.note)


def _unsafe(path: Path, reason: str) -> str:
    """Say which global a pickle asks for, and how to convert it; or that it is none that torch wrote."""
    name = re.search(r"GLOBAL ([\w.]+)", reason)
    if name is None:
        return f"{path} cannot be read: it is damaged, or torch.save did not write it; copy or download it again"
    code = _CONVERSION.format(path=str(path), converted=str(path.with_name(f"{path.stem}-weights.pth")))
    return (
        f"{path} holds more than tensors ({name[1]}), and loading it could run any code; on a machine where you trust it, "
        f"run in Python: {code}"
    )

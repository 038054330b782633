"""KeyMap: how a library names the tensors that `VisionTransformer` names as timm does, and filling a model from its file.

The direction is from ours to theirs: for each tensor of the model, the one or several in the file that make it up. So
whatever is missing, misshapen or left over is known by name before anything is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.checkpoints.files import CheckpointError
from model.checkpoints.tensors.weights_file import WeightsFile
from model.config import ViTConfig
from model.vit import VisionTransformer

_QUANTIZED = (".SCB", ".absmax", ".quant_map", ".weight_format", ".qweight", ".qzeros", ".weight_scale")
"""Endings of keys that bitsandbytes, GPTQ, AWQ and others write beside packed weights."""


@dataclass(frozen=True, slots=True)
class KeyMap:
    """The names of one library's architecture."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our module or parameter -> theirs, or those that are stacked to make it, such as the three of a fused qkv; `*` stands
    for the block's number. What is not named has the same name there."""
    ignored: tuple[str, ...] = ()
    """Beginnings of keys that play no part in classification."""
    ignored_endings: tuple[str, ...] = ()
    """Endings of such keys."""
    zeros: tuple[str, ...] = ()
    """Endings of keys that the library's model does not have, because they are zero there: a bias of the keys."""
    renames: tuple[tuple[str, str], ...] = ()
    """Names that other versions write, or have in memory only, as regular expressions, and what replaces them."""
    slices: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Our tensors that are a part of one tensor there: first and last of so many equal parts, such as (1, 3, 3) for keys and
    values in a fused projection."""
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names that replace those in `names` in a file that has them: one tensor is stored as several there."""

    def extended(
        self,
        *,
        names: Mapping[str, tuple[str, ...]] | None = None,
        renames: tuple[tuple[str, str], ...] = (),
        ignored_endings: tuple[str, ...] = (),
        zeros: tuple[str, ...] = (),
    ) -> "KeyMap":
        """Return the key map of an architecture that has more names than this one, or others."""
        return replace(
            self,
            names={**self.names, **(names or {})},
            renames=(*renames, *self.renames),
            ignored_endings=ignored_endings,
            zeros=zeros,
        )

    def for_file(self, file: WeightsFile) -> "KeyMap":
        """Return the key map of a file, which may have the split names."""
        first = [name.replace("*", "0") for names in self.split.values() for name in names]
        if any(f"{name}.weight" in file.shapes for name in first):
            return replace(self, names={**self.names, **self.split})
        return self

    def sources(self, key: str) -> tuple[str, ...]:
        """The keys in the file that make up our `key`, in the order in which they are stacked."""
        parts = key.split(".")
        number = parts[1] if parts[0] == "blocks" else ""
        pattern = ".".join("*" if number and i == 1 else part for i, part in enumerate(parts))
        if pattern in self.names:
            return tuple(name.replace("*", number) for name in self.names[pattern])
        module, _, parameter = pattern.rpartition(".")
        if module in self.names:
            return tuple(f"{name.replace('*', number)}.{parameter}" for name in self.names[module])
        return (key,)


def has_module(file: WeightsFile, key_map: KeyMap, module: str) -> bool:
    """Return True if a file has all tensors of one of our modules, by the names that the key map has for them."""
    sources = [name for key, names in key_map.names.items() if key.startswith(f"{module}.") for name in names]
    found = file.shapes.keys()
    return bool(sources) and all(name in found or {f"{name}.weight", f"{name}.bias"} <= found for name in sources)


def read_state(file: WeightsFile, key_map: KeyMap, config: ViTConfig, *, headless: bool = False) -> dict[str, Tensor]:
    """Read every tensor of the model under its own name, in float32, after checking all names and shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape than the configuration asks for.
    """
    key_map = key_map.for_file(file)
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in VisionTransformer(config).state_dict().items()}
    if headless:
        expected = {key: shape for key, shape in expected.items() if not key.startswith("head")}
    _check(file, key_map, expected, headless)
    return {key: _read(file, key_map, key, shape) for key, shape in expected.items()}


def _read(file: WeightsFile, key_map: KeyMap, key: str, shape: tuple[int, ...]) -> Tensor:
    """Stack the parts of a tensor, or cut it out of a larger one; a part that is not in the file is zero."""
    sources = key_map.sources(key)
    if key in key_map.slices:
        first, last, count = key_map.slices[key]
        return torch.cat(read_floats(file, sources[0]).chunk(count)[first:last])
    part = (shape[0] // len(sources), *shape[1:])
    return torch.cat([read_floats(file, key).view(part) if key in file.shapes else torch.zeros(part) for key in sources])


def build(config: ViTConfig, state: dict[str, Tensor]) -> VisionTransformer:
    """The model with these weights, in evaluation mode."""
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def read_floats(file: WeightsFile, key: str) -> Tensor:
    """One tensor in float32; refuses what is not plain finite numbers."""
    stored = file.read(key)
    if stored.is_quantized or not stored.is_floating_point():
        raise CheckpointError(
            f"{file.path}: {key} is of {str(stored.dtype).removeprefix('torch.')}, not of floating-point numbers; "
            "save the model in float32, float16 or bfloat16, without quantization"
        )
    if stored.layout is not torch.strided or stored.is_meta:
        raise CheckpointError(f"{file.path}: {key} is {'meta' if stored.is_meta else 'sparse'}; save it as a dense tensor")
    values = stored.float()
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{file.path}: {key} has values that are not finite (NaN, or too large for float32)")
    return values


def _check(file: WeightsFile, key_map: KeyMap, expected: dict[str, tuple[int, ...]], headless: bool) -> None:
    found = file.shapes
    quantized = next((key for key in found if key.endswith(_QUANTIZED)), None)
    if quantized is not None:
        raise CheckpointError(f"{file.path} has {quantized}, as quantized weights do; save the model without quantization")
    wanted: dict[str, tuple[int, ...]] = {}
    for key, (rows, *rest) in expected.items():
        sources = key_map.sources(key)
        if key in key_map.slices:
            first, last, count = key_map.slices[key]
            rows = rows * count // (last - first)
        wanted |= {source: (rows // len(sources), *rest) for source in sources}
    ignored = (*key_map.ignored, *key_map.sources("head"), "head") if headless else key_map.ignored
    problems = [
        f"{key} is missing, expected with shape {shape}"
        for key, shape in wanted.items()
        if key not in found and not key.endswith(key_map.zeros)
    ]
    problems += [
        f"{key} has shape {found[key]}, expected {shape}"
        for key, shape in wanted.items()
        if _without_leading_ones(found.get(key, shape)) != _without_leading_ones(shape)
    ]
    problems += [
        f"{key} with shape {shape} is not expected"
        for key, shape in found.items()
        if key not in wanted and not key.startswith(ignored) and not key.endswith(key_map.ignored_endings)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{file.path} does not fit the architecture: {'; '.join(problems[:5])}{more}")


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop sizes of 1 in front: some libraries store a token or a position embedding with them, others without."""
    return shape[next((index for index, size in enumerate(shape) if size != 1), len(shape)) :]

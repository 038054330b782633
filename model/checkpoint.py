"""Checkpoints: a Hugging Face directory -> (VisionTransformer, Preprocessing, labels), strict about names and shapes.

Only JSON and safetensors are read: nothing in a checkpoint is ever unpickled or run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from model.config import ViTConfig
from model.preprocessing import Preprocessing, from_hugging_face, to_hugging_face
from model.vit import VisionTransformer, resample_position_embedding

WEIGHTS_FILE = "model.safetensors"


class CheckpointError(Exception):
    """A checkpoint that cannot be served; the message says what is wrong with which file or key."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained Vision Transformer with all that is needed to classify a picture."""

    name: str
    architecture: str
    model: VisionTransformer
    """In evaluation mode, float32, on the CPU; takes normalised images."""
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    """In class order."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one architecture names the tensors that `VisionTransformer` names as timm does."""

    prefix: str
    names: Mapping[str, tuple[str, ...]]
    """Our module -> theirs, or the three whose tensors are stacked into a fused qkv; `*` stands for the block's number."""
    ignored: tuple[str, ...]
    """Beginnings of keys that play no part in classification."""

    def sources(self, key: str) -> tuple[str, ...]:
        """The keys in the file that make up our `key`, in the order in which they are stacked."""
        parts = key.split(".")
        number = parts[1] if parts[0] == "blocks" else ""
        pattern = ".".join("*" if i == 1 and number else part for i, part in enumerate(parts))
        module, _, parameter = pattern.rpartition(".")
        if pattern in self.names:  # a bare parameter, such as cls_token
            return tuple(self.prefix + name.replace("*", number) for name in self.names[pattern])
        if module == "head":
            return (f"classifier.{parameter}",)
        return tuple(f"{self.prefix}{name.replace('*', number)}.{parameter}" for name in self.names[module])


_LAYOUTS = {
    "ViTForImageClassification": _Layout(
        prefix="vit.",
        names={
            "cls_token": ("embeddings.cls_token",),
            "pos_embed": ("embeddings.position_embeddings",),
            "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
            "blocks.*.norm1": ("encoder.layer.*.layernorm_before",),
            "blocks.*.attn.qkv": tuple(f"encoder.layer.*.attention.attention.{name}" for name in ("query", "key", "value")),
            "blocks.*.attn.proj": ("encoder.layer.*.attention.output.dense",),
            "blocks.*.norm2": ("encoder.layer.*.layernorm_after",),
            "blocks.*.mlp.fc1": ("encoder.layer.*.intermediate.dense",),
            "blocks.*.mlp.fc2": ("encoder.layer.*.output.dense",),
            "norm": ("layernorm",),
        },
        ignored=("vit.pooler.",),
    ),
    "Dinov2ForImageClassification": _Layout(
        prefix="dinov2.",
        names={
            "cls_token": ("embeddings.cls_token",),
            "pos_embed": ("embeddings.position_embeddings",),
            "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
            "blocks.*.norm1": ("encoder.layer.*.norm1",),
            "blocks.*.attn.qkv": tuple(f"encoder.layer.*.attention.attention.{name}" for name in ("query", "key", "value")),
            "blocks.*.attn.proj": ("encoder.layer.*.attention.output.dense",),
            "blocks.*.ls1.gamma": ("encoder.layer.*.layer_scale1.lambda1",),
            "blocks.*.norm2": ("encoder.layer.*.norm2",),
            "blocks.*.mlp.fc1": ("encoder.layer.*.mlp.fc1",),
            "blocks.*.mlp.fc2": ("encoder.layer.*.mlp.fc2",),
            "blocks.*.ls2.gamma": ("encoder.layer.*.layer_scale2.lambda1",),
            "norm": ("layernorm",),
        },
        ignored=("dinov2.embeddings.mask_token",),
    ),
}


def load_checkpoint(directory: Path) -> Checkpoint:
    """Load a directory that `save_pretrained` of transformers wrote: config.json, model.safetensors, preprocessor_config.json.

    Raises:
        CheckpointError: a file that is missing or broken, an architecture that is not supported, a tensor that is missing,
            unknown or of another shape than the configuration asks for.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory with a checkpoint (config.json, {WEIGHTS_FILE}, preprocessor_config.json)"
        )
    config_file, preprocessing_file = directory / "config.json", directory / "preprocessor_config.json"
    raw = _read_json(config_file)
    architecture = _architecture(raw, config_file)
    layout = _LAYOUTS[architecture]
    with _explained(config_file):
        labels = _labels(raw)
        config = _config(architecture, raw, len(labels))
    with _explained(preprocessing_file):
        preprocessing = from_hugging_face(_read_json(preprocessing_file))
        input_size = _input_size(preprocessing)
    state = _read_state(directory / WEIGHTS_FILE, layout, config)
    if input_size != config.image_size:
        if architecture != "Dinov2ForImageClassification":  # the others refuse this in transformers too
            raise CheckpointError(
                f"{preprocessing_file} makes pictures of {input_size} pixels, but the model takes {config.image_size}"
            )
        config = replace(config, image_size=input_size)
        state["pos_embed"] = resample_position_embedding(state["pos_embed"], config.grid_size, antialias=False)
    return Checkpoint(directory.resolve().name, architecture, _build(config, state), preprocessing, labels)


def load_backbone(directory: Path, num_classes: int, image_size: int) -> VisionTransformer:
    """Load a DINOv2 encoder without its head, as a start for training: a new head, the position embedding made to fit.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    raw = _read_json(directory / "config.json")
    layout = _LAYOUTS["Dinov2ForImageClassification"]
    if raw.get("architectures") == ["Dinov2Model"]:
        layout = replace(layout, prefix="", ignored=("embeddings.mask_token",))
    with _explained(directory / "config.json"):
        config = _config("Dinov2ForImageClassification", raw, num_classes)
    state = _read_state(directory / WEIGHTS_FILE, layout, config, headless=True)
    config = replace(config, image_size=image_size)
    state["pos_embed"] = resample_position_embedding(state["pos_embed"], config.grid_size)
    model = VisionTransformer(config)
    nn.init.trunc_normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.head.bias)
    model.load_state_dict(state | {f"head.{name}": value for name, value in model.head.state_dict().items()})
    return model


def save_checkpoint(
    directory: Path, model: VisionTransformer, preprocessing: Preprocessing, labels: tuple[str, ...], dtype: torch.dtype
) -> None:
    """Write a `Dinov2ForImageClassification` directory that `load_checkpoint` and transformers read."""
    layout, config = _LAYOUTS["Dinov2ForImageClassification"], model.config
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        sources = layout.sources(key)
        for name, part in zip(sources, value.chunk(len(sources)), strict=True):
            tensors[name] = part.to("cpu", dtype).contiguous()
    tensors["dinov2.embeddings.mask_token"] = torch.zeros(1, config.embed_dim, dtype=dtype)
    directory.mkdir(parents=True, exist_ok=True)
    # written as any file is, and so readable for whom the umask allows it: safetensors' own save_file lets only the owner
    (directory / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(directory / "config.json", _hugging_face_config(config, labels, str(dtype).removeprefix("torch.")))
    _write_json(directory / "preprocessor_config.json", to_hugging_face(preprocessing))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which file a wrong value stands in."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: {what}") from error


def _architecture(raw: dict[str, Any], path: Path) -> str:
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
    if architecture in _LAYOUTS:
        return str(architecture)
    raise CheckpointError(f"{path}: architecture {architecture!r} is not supported; supported are {', '.join(_LAYOUTS)}")


def _config(architecture: str, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r} is not supported; supported is 'gelu'")
    if raw.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn is not supported")
    dinov2 = architecture == "Dinov2ForImageClassification"
    embed_dim = int(raw["hidden_size"])
    return ViTConfig(
        num_classes=num_classes,
        image_size=_side(raw["image_size"], "image_size"),
        patch_size=_side(raw["patch_size"], "patch_size"),
        num_channels=_three(raw.get("num_channels", 3)),
        embed_dim=embed_dim,
        depth=int(raw["num_hidden_layers"]),
        num_heads=int(raw["num_attention_heads"]),
        mlp_dim=int(embed_dim * raw["mlp_ratio"]) if dinov2 else int(raw["intermediate_size"]),
        qkv_bias=bool(raw.get("qkv_bias", True)),
        layer_norm_eps=float(raw.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12)),
        layer_scale=dinov2,
        pooling="token+avg" if dinov2 else "token",
    )


def _side(value: Any, key: str) -> int:
    match value:
        case int(side) | [int(side)]:
            return side
        case [int(height), int(width)] if height == width:
            return height
    raise ValueError(f"{key} {value!r} is not one number or a square")


def _three(num_channels: Any) -> int:
    if num_channels != 3:
        raise ValueError(f"num_channels is {num_channels!r}, but pictures have three channels")
    return 3


def _labels(raw: dict[str, Any]) -> tuple[str, ...]:
    """`id2label` in class order; without it, as many `LABEL_i` as `num_labels` says (transformers' default is 2)."""
    by_id = raw.get("id2label")
    if by_id is None:
        return tuple(f"LABEL_{index}" for index in range(int(raw.get("num_labels", 2))))
    if not isinstance(by_id, dict) or {int(index) for index in by_id} != set(range(len(by_id))) or not by_id:
        raise ValueError("id2label must give one label for each class, numbered from 0")
    return tuple(str(label) for _, label in sorted(by_id.items(), key=lambda item: int(item[0])))


def _input_size(preprocessing: Preprocessing) -> int:
    match preprocessing.output_size:
        case (height, width) if height == width:
            return height
        case size:
            raise ValueError(f"the preprocessing must end in a square of a fixed size, not {size}")


def _read_state(path: Path, layout: _Layout, config: ViTConfig, *, headless: bool = False) -> dict[str, Tensor]:
    """Read every tensor of the model under its own name, in float32, after checking all names and shapes."""
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in VisionTransformer(config).state_dict().items()}
    if headless:
        expected = {key: shape for key, shape in expected.items() if not key.startswith("head.")}
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
            _check(path, layout, expected, found, headless)
            return {key: torch.cat([file.get_tensor(source).float() for source in layout.sources(key)]) for key in expected}
    except (OSError, SafetensorError) as error:  # a file that may not be read is FileNotFoundError to safetensors
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _check(
    path: Path, layout: _Layout, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], headless: bool
) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for key, (rows, *rest) in expected.items():
        sources = layout.sources(key)
        wanted |= {source: (rows // len(sources), *rest) for source in sources}
    ignored = (*layout.ignored, "classifier.") if headless else layout.ignored
    problems = [f"{key} is missing, expected with shape {shape}" for key, shape in wanted.items() if key not in found]
    problems += [
        f"{key} has shape {found[key]}, expected {shape}" for key, shape in wanted.items() if found.get(key, shape) != shape
    ]
    problems += [
        f"{key} with shape {shape} is not expected"
        for key, shape in found.items()
        if key not in wanted and not key.startswith(ignored)
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit its config.json: {'; '.join(problems[:5])}{more}")


def _build(config: ViTConfig, state: dict[str, Tensor]) -> VisionTransformer:
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _hugging_face_config(config: ViTConfig, labels: tuple[str, ...], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": config.mlp_dim // config.embed_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "qkv_bias": config.qkv_bias,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "use_mask_token": True,
        "torch_dtype": dtype,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }

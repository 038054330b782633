"""Hugging Face directories: config.json, safetensors and preprocessor_config.json, as `save_pretrained` writes them."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint, config_errors, input_size, integer, number, side, truth
from model.checkpoints.hugging_face.config_keys import DINOV2, DINOV2_WITH_REGISTERS, VIT
from model.checkpoints.known_keys import KnownKeys, check_keys
from model.checkpoints.labels import as_labels, placeholders
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.regular_file import exists
from model.checkpoints.tensors.weights_file import CheckpointError, find_weights, read_json, readable
from model.config import Activation, ViTConfig
from model.preprocessing import from_hugging_face

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`hidden_act` as transformers' ACT2FN names it."""

_GAMMA = ((r"(layernorm\w*)\.gamma$", r"\1.weight"), (r"(layernorm\w*)\.beta$", r"\1.bias"))


def _embeddings(prefix: str) -> dict[str, tuple[str, ...]]:
    blocks = f"{prefix}encoder.layer.*"
    return {
        "cls_token": (f"{prefix}embeddings.cls_token",),
        "dist_token": (f"{prefix}embeddings.distillation_token",),
        "reg_token": (f"{prefix}embeddings.register_tokens",),
        "pos_embed": (f"{prefix}embeddings.position_embeddings",),
        "patch_embed.proj": (f"{prefix}embeddings.patch_embeddings.projection",),
        "blocks.*.attn.qkv": tuple(f"{blocks}.attention.attention.{name}" for name in ("query", "key", "value")),
        "blocks.*.attn.proj": (f"{blocks}.attention.output.dense",),
        "norm": (f"{prefix}layernorm",),
        "head": ("classifier",),
    }


def _in_memory(blocks: str, names: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Map the names that transformers 5 has in memory, and so in `state_dict()`, to those that its `save_pretrained` writes."""
    attention = {f"{letter}_proj": f"attention.{name}" for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    attention["o_proj"] = "output.dense"
    names = names | {f"attention.{name}": f"attention.{written}" for name, written in attention.items()}
    beginning = rf"^({re.escape(blocks)}\.\d+)"
    return tuple((rf"{beginning}\.{re.escape(name)}\.(weight|bias)$", rf"\1.{written}.\2") for name, written in names.items())


def _vit_key_map(prefix: str) -> KeyMap:
    blocks = f"{prefix}encoder.layer.*"
    names = {
        "blocks.*.norm1": (f"{blocks}.layernorm_before",),
        "blocks.*.norm2": (f"{blocks}.layernorm_after",),
        "blocks.*.mlp.fc1": (f"{blocks}.intermediate.dense",),
        "blocks.*.mlp.fc2": (f"{blocks}.output.dense",),
    }
    in_memory = _in_memory(f"{prefix}encoder.layer", {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"})
    return KeyMap(
        _embeddings(prefix) | names,
        ignored=(f"{prefix}pooler.", f"{prefix}embeddings.mask_token"),
        renames=(*_GAMMA, (rf"^{re.escape(prefix)}layers\.", f"{prefix}encoder.layer."), *in_memory),
    )


def dinov2_key_map(prefix: str, *, swiglu: bool = False) -> KeyMap:
    """DINOv2's names; `prefix` is empty in an encoder without a head."""
    blocks = f"{prefix}encoder.layer.*"
    first, second = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    names = {
        "blocks.*.norm1": (f"{blocks}.norm1",),
        "blocks.*.ls1.gamma": (f"{blocks}.layer_scale1.lambda1",),
        "blocks.*.norm2": (f"{blocks}.norm2",),
        "blocks.*.mlp.fc1": (f"{blocks}.mlp.{first}",),
        "blocks.*.mlp.fc2": (f"{blocks}.mlp.{second}",),
        "blocks.*.ls2.gamma": (f"{blocks}.layer_scale2.lambda1",),
    }
    gated = {"mlp.down_proj": "mlp.weights_out"} if swiglu else {}
    return KeyMap(
        _embeddings(prefix) | names,
        ignored=(f"{prefix}embeddings.mask_token",),
        renames=_in_memory(f"{prefix}encoder.layer", gated),
        split={"blocks.*.mlp.fc1": (f"{blocks}.mlp.gate_proj", f"{blocks}.mlp.up_proj")} if swiglu else {},
    )


def _teacher_key_map() -> KeyMap:
    key_map = _vit_key_map("deit.")
    heads = {"head": ("cls_classifier",), "head_dist": ("distillation_classifier",)}
    return replace(key_map, names={**key_map.names, **heads})


@dataclass(frozen=True, slots=True)
class _Family:
    """Parts that transformers' classes of one `model_type` have in common."""

    model_type: str
    keys: KnownKeys
    processor: str
    """Image processor where preprocessor_config.json names none."""
    patch_size: int = 16
    layer_norm_eps: float = 1e-12


_VIT = _Family("vit", VIT, "ViTImageProcessor")
_DEIT = _Family("deit", VIT, "DeiTImageProcessor")
_DINOV2 = _Family("dinov2", DINOV2, "BitImageProcessor", patch_size=14, layer_norm_eps=1e-6)
_REGISTERS = _Family("dinov2_with_registers", DINOV2_WITH_REGISTERS, "BitImageProcessor", layer_norm_eps=1e-6)

ARCHITECTURES = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": _DEIT,
    "DeiTForImageClassificationWithTeacher": _DEIT,
    "Dinov2ForImageClassification": _DINOV2,
    "Dinov2WithRegistersForImageClassification": _REGISTERS,
}


def read_hugging_face(directory: Path) -> Blueprint:
    """Read the blueprint of a directory.

    Raises:
        CheckpointError: a file that is missing or broken, or an architecture that is not supported.
    """
    config_file = directory / "config.json"
    raw = read_json(config_file)
    architecture = _architecture(raw, config_file)
    with config_errors(config_file):
        labels = _labels(raw)
        config = vit_config(architecture, raw, len(labels))
    preprocessing_file, processor = _processor(directory)
    with config_errors(preprocessing_file):
        preprocessing = from_hugging_face(processor, ARCHITECTURES[architecture].processor)
        input_size(preprocessing)
    return Blueprint(
        name=directory.resolve().name,
        architecture=architecture,
        config=config,
        key_map=_key_map(architecture, config),
        preprocessing=preprocessing,
        labels=labels,
        weights=find_weights(directory),
        resampling="antialias" if architecture == "Dinov2WithRegistersForImageClassification" else "bicubic",
        interpolates=architecture.startswith("Dinov2"),
        problem_type=raw.get("problem_type"),
    )


def vit_config(architecture: str, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    """The configuration of one of `ARCHITECTURES`, from its config.json; what that leaves out is transformers' default.

    Raises:
        ValueError, TypeError: a key that is not known, or a value that is wrong.
    """
    family = ARCHITECTURES[architecture]
    _check(raw, family)
    dinov2 = "Dinov2" in architecture
    embed_dim = integer(raw, "hidden_size", 768)
    swiglu = dinov2 and truth(raw, "use_swiglu_ffn", default=False)
    mlp_dim = int(embed_dim * number(raw, "mlp_ratio", 4)) if dinov2 else integer(raw, "intermediate_size", 3072)
    registers = integer(raw, "num_register_tokens", 4) if family is _REGISTERS else 0
    return ViTConfig(
        num_classes=num_classes,
        image_size=side(raw.get("image_size", 224), "image_size"),
        patch_size=side(raw.get("patch_size", family.patch_size), "patch_size"),
        embed_dim=embed_dim,
        depth=integer(raw, "num_hidden_layers", 12),
        num_heads=integer(raw, "num_attention_heads", 12),
        mlp_dim=(int(mlp_dim * 2 / 3) + 7) // 8 * 8 if swiglu else mlp_dim,
        activation="silu" if swiglu else _activation(raw.get("hidden_act", "gelu")),
        swiglu=swiglu,
        qkv_bias=truth(raw, "qkv_bias", default=True),
        layer_norm_eps=number(raw, "layer_norm_eps", family.layer_norm_eps),
        layer_scale=dinov2,
        dist_token=family is _DEIT,
        head_dist=architecture == "DeiTForImageClassificationWithTeacher",
        reg_tokens=registers,
        pos_embed_coverage="class+patches" if registers else "all",
        pooling="token+avg" if dinov2 else "token",
    )


def _check(raw: dict[str, Any], family: _Family) -> None:
    """Refuse what would be ignored, and a model of another type, for transformers goes by that."""
    check_keys(raw, family.keys)
    if raw.get("model_type") not in (None, family.model_type):
        raise ValueError(f"model_type {raw['model_type']!r} does not fit the architecture, whose type is {family.model_type!r}")
    if integer(raw, "num_channels", 3) != 3:
        raise ValueError(f"num_channels is {raw['num_channels']!r}, but images have three channels")


def _processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Read the image processor: that of processor_config.json if that has it, as transformers looks for it."""
    file = directory / "processor_config.json"
    if file.is_file():
        nested = read_json(file).get("image_processor")
        if isinstance(nested, dict):
            return file, nested
    file = directory / "preprocessor_config.json"
    with readable(file):
        if not exists(file):  # a Trainer writes it only if it was given the image processor
            raise CheckpointError(f"{file} is missing: copy that of the model that training began from")
    return file, read_json(file)


def _key_map(architecture: str, config: ViTConfig) -> KeyMap:
    match architecture:
        case "ViTForImageClassification":
            return _vit_key_map("vit.")
        case "DeiTForImageClassification":
            return _vit_key_map("deit.")
        case "DeiTForImageClassificationWithTeacher":
            return _teacher_key_map()
        case "Dinov2ForImageClassification":
            return dinov2_key_map("dinov2.", swiglu=config.swiglu)
        case _:
            return dinov2_key_map("dinov2_with_registers.", swiglu=config.swiglu)


def _architecture(raw: dict[str, Any], path: Path) -> str:
    named = raw.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and len(named) == 1 else None
    if architecture in ARCHITECTURES:
        return architecture
    if architecture is not None and re.fullmatch(r"(ViT|DeiT|Dinov2|Dinov2WithRegisters)Model", architecture):
        raise CheckpointError(f"{path}: {architecture} is an encoder without a classifier, and there are no classes to answer")
    if architecture is None and named:
        raise CheckpointError(f"{path}: architectures {named!r} is not supported; it must be a list of one name")
    what = f"architecture {architecture!r} is not supported" if architecture else "no architecture is named"
    raise CheckpointError(f"{path}: {what}; supported are {', '.join(ARCHITECTURES)}, and timm's plain vit and deit models")


def _activation(name: Any) -> Activation:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    raise ValueError(f"hidden_act {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")


def _labels(raw: dict[str, Any]) -> tuple[str, ...]:
    """`id2label` in class order; without it, as many `LABEL_i` as `num_labels` says (transformers' default is 2)."""
    by_id = raw.get("id2label")
    if by_id is None:
        return placeholders(integer(raw, "num_labels", 2))
    if not isinstance(by_id, dict) or not by_id or set(by_id) != {str(index) for index in range(len(by_id))}:
        raise ValueError("id2label must give one label for each class, numbered from 0")
    if raw.get("num_labels") is not None and integer(raw, "num_labels") != len(by_id):
        raise ValueError(
            f"num_labels is {raw['num_labels']}, but id2label gives {len(by_id)} labels; remove the one that is wrong"
        )
    return as_labels([by_id[str(index)] for index in range(len(by_id))], "id2label")

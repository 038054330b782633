"""timm's checkpoints: a directory with timm's config.json, or a bare file whose architecture somebody names.

timm's names are our names, so there is nothing to translate. The architecture's name gives the sizes, and must; the tensors
in the file tell which of the choices were made (class token or none, registers, LayerScale, pre-norm, ...).
"""

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint, config_errors, side
from model.checkpoints.labels import as_labels, placeholders
from model.checkpoints.published.timm_weights import published_cfg
from model.checkpoints.published.trained_on import TrainedOn, said_by_dataset, said_by_tag
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.renaming import count_classes, rename_tensors
from model.checkpoints.tensors.weights_file import WeightsFile, find_weights, open_weights, read_json
from model.checkpoints.timm.config_json import read_config
from model.checkpoints.timm.model_args import activation, check_choices, layer_norm_eps, pooling, sizes
from model.config import Activation, PosEmbedCoverage, ViTConfig
from model.preprocessing import from_timm

_SIZES = {
    # name: embed_dim, depth, num_heads, mlp_dim (timm, vision_transformer.py and deit.py)
    "tiny": (192, 12, 3, 768),
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "little": (320, 14, 5, 1792),
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base": (768, 12, 12, 3072),
    "base_plus": (896, 12, 14, 3584),
    "base_gap": (768, 12, 16, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "giant_dinov2": (1536, 40, 24, 4096),
    "gigantic": (1664, 48, 16, 8192),
}

_KEY_MAP = KeyMap(renames=((r"\.gamma_([12])$", r".ls\1.gamma"),))  # DeiT III's

_NAME = re.compile(
    r"(?P<family>vit|deit|deit3)_(?P<size>[a-z]+)(?:_distilled)?_patch(?P<patch>\d+)"
    r"(?P<choices>(?:_(?:clip|quickgelu|plus|gap|reg\d+|dinov2|miil))*)(?:_(?P<image>\d+))?"
)
"""`vit_base_patch16_clip_quickgelu_224`, `deit_tiny_distilled_patch16_224`, `vit_small_patch14_reg4_dinov2`, ..."""

SUPPORTED = "vit_<size>_patch<P>_[clip_][gap_][reg<N>_]<pixels>, vit_<size>_patch14_[reg4_]dinov2, deit_*, deit3_*"


@dataclass(frozen=True, slots=True)
class _Name:
    """Parts of an architecture's name."""

    family: str
    size: str
    patch_size: int
    choices: frozenset[str]
    image_size: int


def read_timm_directory(directory: Path) -> Blueprint:
    """A directory with timm's config.json (`architecture`, `pretrained_cfg`) and model.safetensors.

    Raises:
        CheckpointError: a file that is missing or broken, or an architecture that is not supported.
    """
    config_file = directory / "config.json"
    content = read_json(config_file)
    weights = rename_tensors(open_weights(find_weights(directory)), _KEY_MAP)
    with config_errors(config_file):
        said = read_config(content)
        raw, pretrained, num_classes = said.raw, said.pretrained, said.num_classes
        name = _parse(str(raw["architecture"]))
        if num_classes == 0:
            raise ValueError("num_classes is 0: it is an encoder without a classifier, and there are no classes to answer")
        config = _config(name, weights, num_classes, said.image_size, said.arguments)
        check_choices(said.arguments, config, plain_mean=_plain_mean(name))
        _check_pooling(raw, said.arguments, config)
        named = bool(raw.get("label_names") or pretrained.get("label_names"))
        labels = read_labels(raw, pretrained, num_classes)
        preprocessing = from_timm(pretrained, said.picture_size)
    return Blueprint(
        name=directory.resolve().name,
        architecture=str(raw["architecture"]),
        config=config,
        key_map=_KEY_MAP,
        preprocessing=preprocessing,
        labels=labels,
        weights=weights.path,
        resampling="antialias",
        interpolates=bool(said.arguments.get("dynamic_img_size")),
        trained_on=None if named else read_trained_on(raw, pretrained, num_classes),
        problem_type=raw.get("problem_type"),
    )


def read_timm_file(path: Path, architecture: str) -> Blueprint:
    """A bare state dict of a timm model. Its preprocessing is that of timm's weights of this tag, or of the default ones.

    Raises:
        CheckpointError: the file is broken, or the architecture is not supported.
    """
    weights = rename_tensors(open_weights(path), _KEY_MAP)
    with config_errors(path):
        name = _parse(architecture)
        config = _config(name, weights, count_classes(weights, _KEY_MAP), name.image_size, {})
        _refuse_another_size(weights, architecture, config)
        preprocessing = from_timm(published_cfg(architecture), name.image_size)
    return Blueprint(
        name=path.stem,
        architecture=architecture,
        config=config,
        key_map=_KEY_MAP,
        preprocessing=preprocessing,
        labels=placeholders(config.num_classes),
        weights=path,
        resampling="antialias",
        trained_on=said_by_tag(architecture.partition(".")[2], config.num_classes),
    )


def _refuse_another_size(weights: WeightsFile, architecture: str, config: ViTConfig) -> None:
    """Say how to write down the image size of training; the name of another size would stand for another preprocessing."""
    patches = weights.tokens("pos_embed") - config.num_pos_embed_prefix_tokens
    grid = isqrt(max(0, patches))
    size = grid * config.patch_size
    if grid == 0 or grid**2 != patches or size == config.image_size:
        return
    directory = str(weights.path.with_name(f"{weights.path.stem}-{size}"))
    arguments = f"{architecture!r}, img_size={size}, num_classes={config.num_classes}, checkpoint_path={str(weights.path)!r}"
    raise ValueError(
        f"pos_embed is of images of {size} pixels, but {architecture} takes {config.image_size}; to write a directory that "
        f"can be served, run in Python: import timm; timm.models.save_for_hf(timm.create_model({arguments}), "
        f"{directory!r}, model_args={{'img_size': {size}}})"
    )


def is_supported(architecture: str) -> bool:
    """Return True if models of this name, with a tag or without, are supported."""
    try:
        _parse(architecture)
    except ValueError:
        return False
    return True


def _parse(architecture: str) -> _Name:
    match = _NAME.fullmatch(architecture.partition(".")[0])  # what follows the dot names the training, not the architecture
    choices = frozenset(match["choices"].split("_")[1:]) if match else frozenset()
    size = _size_of(match["size"], choices) if match else ""
    if match is None or size not in _SIZES:
        raise ValueError(f"timm architecture {architecture!r} is not supported; supported are {SUPPORTED}")
    image_size = int(match["image"]) if match["image"] else (518 if "dinov2" in choices else 224)
    return _Name(match["family"], size, int(match["patch"]), choices, image_size)


def _size_of(size: str, choices: frozenset[str]) -> str:
    """A few choices come with sizes of their own; `gap` does only in the older models, which have no registers."""
    registers = any(choice.startswith("reg") for choice in choices)
    own = (f"{size}_{choice}" for choice in choices if not (choice == "gap" and registers))
    return next((name for name in own if name in _SIZES), size)


def _config(name: _Name, weights: WeightsFile, num_classes: int, image_size: int, arguments: dict[str, Any]) -> ViTConfig:
    """Sizes as the name says, or the arguments that the model was made with; choices as the tensors show."""
    shapes = weights.shapes
    class_token, fc_norm = "cls_token" in shapes, "fc_norm.weight" in shapes
    reg_tokens = weights.tokens("reg_token")
    patch_size = side(arguments.get("patch_size", name.patch_size), "model_args.patch_size")
    prefix = class_token + ("dist_token" in shapes) + reg_tokens
    token = class_token and not fc_norm and "gap" not in name.choices
    return ViTConfig(
        num_classes=num_classes,
        image_size=image_size,
        patch_size=patch_size,
        **sizes(_SIZES[name.size], arguments, gated=name.size == "giant_dinov2"),
        activation=activation(arguments, _activation(name)),
        swiglu=name.size == "giant_dinov2",
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        layer_norm_eps=layer_norm_eps(arguments, 1e-5 if "clip" in name.choices else 1e-6),
        layer_scale="blocks.0.ls1.gamma" in shapes,
        class_token=class_token,
        dist_token="dist_token" in shapes,
        head_dist="head_dist.weight" in shapes,
        reg_tokens=reg_tokens,
        pos_embed_coverage=_pos_embed_coverage(weights, (image_size // patch_size) ** 2 if patch_size > 0 else 0, prefix),
        pre_norm="norm_pre.weight" in shapes,
        pooling=pooling(arguments, "token" if token else "avg"),
        fc_norm=fc_norm,
    )


def _activation(name: _Name) -> Activation:
    if name.size == "giant_dinov2":
        return "silu"
    return "quick_gelu" if "quickgelu" in name.choices else "gelu"


def _pos_embed_coverage(weights: WeightsFile, num_patches: int, prefix: int) -> PosEmbedCoverage:
    """Return the tokens that the position embedding covers, from its length."""
    return "patches" if prefix and weights.tokens("pos_embed") == num_patches else "all"


def _plain_mean(name: _Name) -> bool:
    """Return True if an architecture pools by the mean of normalised patches, as in the `gap` ones without registers."""
    return "gap" in name.choices and not any(choice.startswith("reg") for choice in name.choices)


def _check_pooling(raw: dict[str, Any], arguments: dict[str, Any], config: ViTConfig) -> None:
    """Refuse a `global_pool` beside `model_args` that says otherwise: timm wrote it there, and does not read it."""
    written = raw.get("global_pool")
    if "global_pool" not in arguments and written not in (None, "", config.pooling):
        raise ValueError(
            f"global_pool is {written!r}, but timm reads only that in model_args, and makes a model of this architecture that "
            f"pools by {config.pooling!r}: put it into model_args if the model was trained so, or remove it"
        )


def read_labels(raw: dict[str, Any], pretrained: dict[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return `label_names` in class order; without them, placeholders.

    Raises:
        ValueError: there are not as many as classes.
    """
    names = raw.get("label_names") or pretrained.get("label_names")
    if names is None:
        return placeholders(num_classes)
    descriptions = raw.get("label_descriptions") or pretrained.get("label_descriptions")
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(num_classes)}:
            raise ValueError(f"label_names must give one label for each of {num_classes} classes, numbered from 0")
        names = [names[str(index)] for index in range(num_classes)]
    if not isinstance(names, list) or len(names) != num_classes:
        raise ValueError(f"label_names must give one label for each of {num_classes} classes")
    if isinstance(descriptions, dict):
        names = [descriptions.get(name) or name for name in names]
    return as_labels(names, "label_names")


def read_trained_on(raw: dict[str, Any], pretrained: dict[str, Any], num_classes: int) -> TrainedOn | None:
    """Return what a configuration says of the classes; timm keeps the parent's tag in a fine-tune, also of other classes."""
    if pretrained.get("num_classes", num_classes) != num_classes:
        return None
    dataset = pretrained.get("dataset", raw.get("dataset"))
    if dataset is not None:
        return said_by_dataset(str(dataset), num_classes)
    return said_by_tag(str(pretrained.get("tag") or str(raw["architecture"]).partition(".")[2]), num_classes)

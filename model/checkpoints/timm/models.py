"""timm's checkpoints: a directory with timm's config.json, or a bare file whose architecture somebody names.

timm's names are our names, so there is nothing to translate. The architecture's name gives the sizes, and must; the tensors
in the file tell which of the choices were made (class token or none, registers, LayerScale, pre-norm, ...).
"""

from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint, config_errors, side
from model.checkpoints.files import find_weights, read_json
from model.checkpoints.labels import as_labels, placeholders
from model.checkpoints.published.timm_weights import published_cfg
from model.checkpoints.published.trained_on import TrainedOn, said_by_dataset, said_by_tag
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.renaming import count_classes, rename_tensors
from model.checkpoints.tensors.weights_file import WeightsFile, open_weights
from model.checkpoints.timm.config_json import read_config
from model.checkpoints.timm.model_args import activation, check_choices, layer_norm_eps, pooling, sizes
from model.checkpoints.timm.names import TimmName, parse
from model.config import Pooling, PosEmbedCoverage, ViTConfig
from model.preprocessing import from_timm

_GAMMA = (r"\.gamma_([12])$", r".ls\1.gamma")
"""LayerScale of DeiT III, BEiT and DINOv3."""

_VIT = KeyMap(renames=(_GAMMA,))

_SEPARATE_BIASES = KeyMap(
    names={
        "blocks.*.attn.qkv.bias": tuple(f"blocks.*.attn.{name}_bias" for name in "qkv"),
        "blocks.*.attn.rel_pos.table": ("blocks.*.attn.relative_position_bias_table",),
    },
    ignored_endings=(".relative_position_index",),
    renames=(_GAMMA,),
    zeros=(".attn.k_bias", ".attn.k_proj.bias"),
)
"""BEiT, DINOv3 and EVA-02, whose keys have no bias."""

_SEPARATE_GATE = {"blocks.*.mlp.fc1": ("blocks.*.mlp.fc1_g", "blocks.*.mlp.fc1_x")}
_SEPARATE_PROJECTIONS = {
    f"blocks.*.attn.qkv.{kind}": tuple(f"blocks.*.attn.{name}_proj.{kind}" for name in "qkv") for kind in ("weight", "bias")
}


def _key_map(name: TimmName) -> KeyMap:
    if name.rope is None and not name.relative_positions:
        return _VIT
    names = dict(_SEPARATE_BIASES.names)
    if name.separate_projections:
        names |= _SEPARATE_PROJECTIONS
    if name.separate_projections or (name.dinov3 and name.swiglu):
        names |= _SEPARATE_GATE
    return replace(_SEPARATE_BIASES, names=names)


def read_timm_directory(directory: Path) -> Blueprint:
    """A directory with timm's config.json (`architecture`, `pretrained_cfg`) and model.safetensors.

    Raises:
        CheckpointError: a file that is missing or broken, or an architecture that is not supported.
    """
    config_file = directory / "config.json"
    content = read_json(config_file)
    with config_errors(config_file):
        said = read_config(content)
        raw, pretrained, num_classes = said.raw, said.pretrained, said.num_classes
        name = parse(str(raw["architecture"]))
    key_map = _key_map(name)
    weights = rename_tensors(open_weights(find_weights(directory)), key_map)
    with config_errors(config_file):
        config = _config(name, weights, num_classes, said.image_size, said.arguments)
        check_choices(said.arguments, config, plain_mean=name.plain_mean)
        _check_pooling(raw, said.arguments, config)
        named = bool(raw.get("label_names") or pretrained.get("label_names"))
        labels = read_labels(raw, pretrained, num_classes) if num_classes else ()
        preprocessing = from_timm(pretrained, said.picture_size)
    return Blueprint(
        name=directory.resolve().name,
        architecture=str(raw["architecture"]),
        config=config,
        key_map=key_map,
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
    with config_errors(path):
        name = parse(architecture)
    key_map = _key_map(name)
    weights = rename_tensors(open_weights(path), key_map)
    with config_errors(path):
        config = _config(name, weights, count_classes(weights, key_map), name.image_size, {})
        _refuse_another_size(weights, architecture, config)
        preprocessing = from_timm(published_cfg(architecture), name.image_size)
    return Blueprint(
        name=path.stem,
        architecture=architecture,
        config=config,
        key_map=key_map,
        preprocessing=preprocessing,
        labels=placeholders(config.num_classes),
        weights=path,
        resampling="antialias",
        trained_on=said_by_tag(architecture.partition(".")[2], config.num_classes),
    )


def _refuse_another_size(weights: WeightsFile, architecture: str, config: ViTConfig) -> None:
    """Say how to write down the image size of training; the name of another size would stand for another preprocessing."""
    if config.pos_embed_coverage == "none":
        return
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


def _config(name: TimmName, weights: WeightsFile, num_classes: int, image_size: int, arguments: dict[str, Any]) -> ViTConfig:
    """Sizes as the name says, or the arguments that the model was made with; choices as the tensors show."""
    shapes = weights.shapes
    class_token, fc_norm = "cls_token" in shapes, "fc_norm.weight" in shapes
    without_heads = "dist_token" in shapes and "head_dist.weight" not in shapes  # timm then gives the mean of both tokens
    reg_tokens = weights.tokens("reg_token")
    patch_size = side(arguments.get("patch_size", name.patch_size), "model_args.patch_size")
    prefix = class_token + ("dist_token" in shapes) + reg_tokens
    return ViTConfig(
        num_classes=num_classes,
        image_size=image_size,
        patch_size=patch_size,
        **sizes(name.sizes, arguments, gated=name.size == "giant_dinov2"),
        activation=activation(arguments, name.activation),
        swiglu=name.swiglu,
        mlp_norm=name.separate_projections,
        qkv_bias=any(f"blocks.0.attn.{key}" in shapes for key in ("qkv.bias", "q_bias", "q_proj.bias")),
        layer_norm_eps=layer_norm_eps(arguments, name.layer_norm_eps),
        layer_scale="blocks.0.ls1.gamma" in shapes,
        class_token=class_token,
        dist_token="dist_token" in shapes,
        head_dist="head_dist.weight" in shapes,
        reg_tokens=reg_tokens,
        pos_embed_coverage=_pos_embed_coverage(weights, (image_size // patch_size) ** 2 if patch_size > 0 else 0, prefix),
        relative_positions=name.relative_positions,
        rope=name.rope,
        pre_norm="norm_pre.weight" in shapes,
        final_norm=fc_norm or name.size != "intern300m",
        pooling="token+dist" if without_heads else pooling(arguments, _pooling(name, weights)),
        fc_norm=fc_norm,
    )


def _pooling(name: TimmName, weights: WeightsFile) -> Pooling:
    """Return the architecture's own pooling."""
    if "attn_pool.latent" in weights.shapes:
        return "map"
    mean = "fc_norm.weight" in weights.shapes or "gap" in name.choices or name.dinov3
    return "avg" if mean or "cls_token" not in weights.shapes else "token"


def _pos_embed_coverage(weights: WeightsFile, num_patches: int, prefix: int) -> PosEmbedCoverage:
    """Return the tokens that the position embedding covers, from its length."""
    if "pos_embed" not in weights.shapes:
        return "none"
    return "patches" if prefix and weights.tokens("pos_embed") == num_patches else "all"


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

"""Classifiers of timm: an allow-list of families that tests compare, built by name and filled from our reader."""

import json
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.blueprint import Blueprint, config_errors
from model.checkpoints.files import CheckpointError, find_weights
from model.checkpoints.known_keys import KnownKeys, keys
from model.checkpoints.labels import placeholders
from model.checkpoints.published.trained_on import said_by_tag
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.weights_file import WeightsFile, open_weights
from model.checkpoints.timm import models as own
from model.checkpoints.timm.config_json import read_config
from model.library.installed import LibraryChoice, first_line, import_from, installed_version, require
from model.library.library_model import LibraryConfig, check_numbers, check_total, fill, read_tensors
from model.preprocessing import Preprocessing, from_timm

_NAMES = re.compile(
    r"swin_\w+|swinv2_(?!cr_)\w+|convnext(v2)?_\w+|(wide_)?resnet\d+[cdst]?(_gn|_2)?|resnext\d+d?_\d+x\d+d|"
    r"(tf_)?efficientnet(v2)?_(?!cc_)\w+|(tf_)?mobilenetv3_\w+|mobilenetv4_\w+|fastvit_\w+|maxvit_\w+"
)

MODULES = frozenset(
    {"convnext", "efficientnet", "fastvit", "maxxvit", "mobilenetv3", "resnet", "swin_transformer", "swin_transformer_v2"}
)
"""timm's modules that have these names."""

_MODEL_ARGS = KnownKeys(
    honoured=keys(
        "img_size num_classes depths layers dims embed_dim embed_dims num_heads window_size mlp_ratio mlp_ratios patch_size "
        "channels stem_width base_width cardinality"
    ),
    harmless=keys("drop_rate drop_path_rate drop_block_rate proj_drop_rate attn_drop_rate head_init_scale out_indices"),
    supported={"in_chans": (3,), "global_pool": ("avg",)},
)
"""Arguments that a checkpoint may ask for: sizes. timm takes others too, among them files and addresses to load from."""

_WRAPPER = "timm_model."
"""Prefix of all keys that transformers' TimmWrapper writes."""


def is_served(architecture: str) -> bool:
    """Return True for an architecture, with a tag or without, that timm may run."""
    return _NAMES.fullmatch(architecture.partition(".")[0]) is not None


def read_timm_library_directory(folder: Path, content: dict[str, Any], choice: LibraryChoice) -> Blueprint:
    """Read the blueprint of a directory with timm's config.json, whose model timm runs.

    Raises:
        CheckpointError: a file is missing or broken, a key is not known, or timm is not there.
    """
    file = folder / "config.json"
    architecture = str(content["architecture"])
    require("timm", choice, f"timm's {architecture}", file)
    with config_errors(file):
        said = read_config(content, _MODEL_ARGS)
        if said.num_classes == 0:
            raise ValueError("num_classes is 0: it is an encoder without a classifier, and there are no classes to answer")
        arguments = {key: value for key, value in said.arguments.items() if key in _MODEL_ARGS.honoured and value is not None}
        check_numbers(arguments)
        preprocessing = from_timm(said.pretrained, said.picture_size)
        labels = own.read_labels(said.raw, said.pretrained, said.num_classes)
        named = bool(said.raw.get("label_names") or said.pretrained.get("label_names"))
        trained_on = None if named else own.read_trained_on(said.raw, said.pretrained, said.num_classes)
    pooling = said.raw.get("global_pool")
    config = _config(architecture, said.num_classes, arguments, preprocessing, file, pooling)
    return Blueprint(
        name=folder.resolve().name,
        architecture=architecture,
        config=config,
        key_map=KeyMap(),
        preprocessing=preprocessing,
        labels=labels,
        weights=find_weights(folder),
        resampling="antialias",
        trained_on=trained_on,
        problem_type=said.raw.get("problem_type"),
    )


def read_timm_library_file(path: Path, architecture: str, choice: LibraryChoice) -> Blueprint:
    """Read the blueprint of a bare state dict, prepared as timm's weights of this tag, or the default ones, are.

    Raises:
        CheckpointError: the file is broken, timm has no such weights, or timm is not there.
    """
    require("timm", choice, f"timm's {architecture}", path)
    timm = import_from("timm")
    try:
        if not timm.is_model(architecture.partition(".")[0]):
            raise RuntimeError(f"timm {timm.__version__} has no architecture {architecture}")
        published = timm.get_pretrained_cfg(architecture, allow_unregistered=False).to_dict()
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}", "architecture") from error
    weights = open_weights(path)
    with config_errors(path):
        num_classes = _count_classes(weights, str(published["classifier"]))
        preprocessing = from_timm(published, published["input_size"][1])
        labels = placeholders(num_classes)
    config = _config(architecture.partition(".")[0], num_classes, {}, preprocessing, path, None)
    return Blueprint(
        name=path.stem,
        architecture=architecture,
        config=config,
        key_map=KeyMap(),
        preprocessing=preprocessing,
        labels=labels,
        weights=path,
        resampling="antialias",
        trained_on=said_by_tag(architecture.partition(".")[2], num_classes),
    )


def _config(
    architecture: str, num_classes: int, arguments: dict[str, Any], preprocessing: Preprocessing, file: Path, pooling: Any
) -> LibraryConfig:
    size = preprocessing.output_size
    assert size is not None  # timm's always ends in a crop
    return LibraryConfig(
        library="timm",
        version=installed_version("timm"),
        architecture=architecture,
        arguments=json.dumps(arguments, sort_keys=True),
        num_classes=num_classes,
        image_size=size[0],
        load=partial(_load, architecture.partition(".")[0], {**arguments, "num_classes": num_classes}, file, pooling),
    )


def _load(name: str, arguments: dict[str, Any], file: Path, pooling: Any, weights: WeightsFile) -> nn.Module:
    timm = import_from("timm")
    try:
        with torch.device("meta"):
            outline = timm.create_model(name, pretrained=False, **arguments)
        check_total(weights, outline)
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor raises on arguments that it does not take
        what = f"timm {timm.__version__} does not make {name} with {arguments}"
        raise CheckpointError(f"{file}: {what}: {first_line(error)}") from error
    made = getattr(model, "global_pool", None)
    if isinstance(made, str) and pooling not in (None, "", made):
        raise CheckpointError(f"{file}: global_pool is {pooling!r}, but timm makes a model that pools by {made!r}")
    bare = _without_prefix(weights, model.state_dict())
    return fill(model, bare, _in_present_form(model, read_tensors(bare)))


def _without_prefix(weights: WeightsFile, expected: Mapping[str, Tensor]) -> WeightsFile:
    """Take off what a wrapper put before all names."""
    first = next(iter(expected))
    prefix = next((key.removesuffix(first) for key in weights.shapes if key.endswith(f".{first}")), "")
    prefix = _WRAPPER if all(key.startswith(_WRAPPER) for key in weights.shapes) else prefix
    if first in weights.shapes or not prefix or not all(key.startswith(prefix) for key in weights.shapes):
        return weights
    return weights.renamed({key.removeprefix(prefix): key for key in weights.shapes})


def _in_present_form(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate names of earlier versions as timm does when it loads; it must not make tensors fit by changing them."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or tensors.keys() == model.state_dict().keys():
        return tensors
    try:
        converted: dict[str, Tensor] = convert(dict(tensors), model)
    except Exception:  # of files that are of another model, which are refused by name afterwards
        return tensors
    changed = any(key in tensors and tensors[key].shape != value.shape for key, value in converted.items())
    return tensors if changed else converted


def _count_classes(weights: WeightsFile, classifier: str) -> int:
    for key, shape in weights.shapes.items():
        if (key == f"{classifier}.weight" or key.endswith(f".{classifier}.weight")) and shape:
            return shape[0]
    raise ValueError(f"there is no {classifier}.weight: a classifier is needed, and the library would invent it")

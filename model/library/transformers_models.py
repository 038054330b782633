"""Classifiers of transformers: an allow-list of classes that tests compare, built from config.json and filled from our reader.

Nothing is downloaded, and no code of a checkpoint is run.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.blueprint import Blueprint, config_errors, input_size, integer
from model.checkpoints.files import CheckpointError, find_weights
from model.checkpoints.hugging_face import config_keys, directory
from model.checkpoints.known_keys import KnownKeys, check_keys, keys
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.weights_file import WeightsFile
from model.library.installed import LibraryChoice, first_line, import_from, installed_version, require
from model.library.library_model import (
    MAX_IMAGE_SIZE,
    LibraryConfig,
    check_numbers,
    check_total,
    read_tensors,
    refuse_misfits,
)
from model.preprocessing import from_hugging_face

_CLASS = "ForImageClassification"

PROCESSORS = {
    "Swin": "ViT",
    "Swinv2": "ViT",
    "ConvNext": "ConvNext",
    "ConvNextV2": "ConvNext",
    "ResNet": "ConvNext",
    "RegNet": "ConvNext",
    "MobileNetV1": "MobileNetV1",
    "MobileNetV2": "MobileNetV2",
    "MobileViT": "MobileViT",
    "MobileViTV2": "MobileViT",
    "EfficientNet": "EfficientNet",
    "Pvt": "Pvt",
    "PvtV2": "Pvt",
    "Hiera": "Bit",
    "FocalNet": "Bit",
    "PoolFormer": "PoolFormer",
}
"""Families that are served, each with its image processor where preprocessor_config.json names none (transformers,
models/auto/image_processing_auto.py)."""

_LABELS = keys("architectures model_type id2label label2id num_labels problem_type")

_BACKBONE = keys("stage_names out_features out_indices _out_features _out_indices")
"""Keys of the same encoder's use as a backbone for detection."""

_FORMER = keys("path_norm num_layers hidden_size mlp_ratio reshape_last_stage feature_extractor_type")
"""Keys that earlier versions wrote, and that say nothing beside the others."""


def family_of(architecture: str) -> str | None:
    """Return the family of a classifier that transformers may run."""
    family = architecture.removesuffix(_CLASS)
    return family if family in PROCESSORS and architecture.endswith(_CLASS) else None


def read_transformers(folder: Path, raw: dict[str, Any], architecture: str, choice: LibraryChoice) -> Blueprint:
    """Read the blueprint of a directory whose model transformers runs.

    Raises:
        CheckpointError: a file is missing or broken, a key is not known, or transformers is not there.
    """
    file = folder / "config.json"
    require("transformers", choice, architecture, file)
    family = architecture.removesuffix(_CLASS)
    with config_errors(file):
        labels = directory.read_labels(raw)
    config = _config(family, raw, file)
    config.num_labels = len(labels)
    processor_file, processor = directory.read_processor(folder)
    with config_errors(processor_file):
        preprocessing = from_hugging_face(processor, f"{PROCESSORS[family]}ImageProcessor")
        size = input_size(preprocessing)
        if size > MAX_IMAGE_SIZE:
            raise ValueError(f"images of {size} pixels are more than any model takes")
    return Blueprint(
        name=folder.resolve().name,
        architecture=architecture,
        config=LibraryConfig(
            library="transformers",
            version=installed_version("transformers"),
            architecture=architecture,
            arguments=json.dumps(_own_values(config), sort_keys=True),
            num_classes=len(labels),
            image_size=size,
            load=partial(_load, architecture, config),
        ),
        key_map=KeyMap(),
        preprocessing=preprocessing,
        labels=labels,
        weights=find_weights(folder),
        resampling="bicubic",
        problem_type=raw.get("problem_type"),
    )


class _Mean(nn.Module):
    """Mean over height and width, as of a pooling window larger than the image, which OpenVINO refuses."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3), keepdim=True)


def _config(family: str, raw: dict[str, Any], file: Path) -> Any:
    """Make transformers' configuration from the keys that its class has; others would be ignored, and are refused."""
    config_class = import_from("transformers", f"{family}Config")
    common = set(import_from("transformers", "PreTrainedConfig")().to_dict())  # how to run it: nothing a file shall choose
    default = config_class()
    own = frozenset(default.to_dict()) - common - _LABELS - _BACKBONE
    with config_errors(file):
        harmless = config_keys.HARMLESS | _BACKBONE | _FORMER
        check_keys(raw, KnownKeys(own | _LABELS, harmless, config_keys.SUPPORTED, config_keys.REFUSED))
        if raw.get("model_type") not in (None, default.model_type):
            raise ValueError(
                f"model_type {raw['model_type']!r} does not fit the architecture, whose type is {default.model_type!r}"
            )
        if integer(raw, "num_channels", 3) != 3:
            raise ValueError(f"num_channels is {raw['num_channels']!r}, but images have three channels")
        values = {key: value for key, value in raw.items() if key in own}
        check_numbers(values)
    try:
        return config_class(**values)
    except Exception as error:  # the classes validate in ways of their own
        raise CheckpointError(f"{file}: {first_line(error)}") from error


def _own_values(config: Any) -> dict[str, Any]:
    skipped = {"id2label", "label2id", "transformers_version"}
    return {key: value for key, value in config.to_dict().items() if key not in skipped}


def _load(architecture: str, config: Any, weights: WeightsFile) -> nn.Module:
    """Build the model and fill it, with transformers' own translation of the names that it wrote earlier."""
    logging = import_from("transformers").utils.logging
    model_class = import_from("transformers", architecture)
    logging.set_verbosity_error()  # what it reports is refused here
    logging.disable_progress_bar()
    try:
        with torch.device("meta"):
            outline = model_class(config)
    except Exception as error:
        raise CheckpointError(f"{weights.path.parent / 'config.json'}: {first_line(error)}") from error
    check_total(weights, outline)
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=read_tensors(weights),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )
    wrong = [f"{key} has shape {tuple(shape)}, expected {tuple(own)}" for key, shape, own in found["mismatched_keys"]]
    refuse_misfits(weights, list(found["missing_keys"]), wrong, list(found["unexpected_keys"]))
    if found["error_msgs"]:
        raise CheckpointError(f"{weights.path}: {found['error_msgs'][0]}")
    if architecture.startswith("EfficientNet") and config.pooling_type == "mean":
        model.efficientnet.pooler = _Mean()
    module: nn.Module = model
    return module

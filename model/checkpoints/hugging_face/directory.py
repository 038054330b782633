"""Hugging Face directories: config.json, safetensors and preprocessor_config.json, as `save_pretrained` writes them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint, config_errors, input_size, integer
from model.checkpoints.files import CheckpointError, find_weights, read_json, readable
from model.checkpoints.hugging_face.families import ARCHITECTURES, ENCODERS
from model.checkpoints.labels import as_labels, placeholders
from model.checkpoints.tensors.regular_file import exists
from model.preprocessing import from_hugging_face

_WHY_NOT = {
    r"Data2VecVisionModel": "is an encoder without a classifier, and gives no features of a whole image; "
    "serve a fine-tune of it (Data2VecVisionForImageClassification)",
    r"Siglip2(ForImageClassification|Model|VisionModel)": "(NaFlex) takes images of any shape in patches, and only squares are "
    "served; use a SigLIP 2 checkpoint of a fixed size, whose model_type is siglip",
    r"(ViT|Beit|Data2VecVision)For(MaskedImageModeling|SemanticSegmentation)": "is of another task, not image classification; "
    "serve a fine-tune of it (…ForImageClassification)",
    r"ImageGPTForImageClassification": "reads images as clusters of colours, which no preprocessing here makes",
    r"ShieldGemma2ForImageClassification": "is a language model; serve it with a server for those",
}
"""Reasons against architectures that people try, by pattern."""


def read_hugging_face(directory: Path) -> Blueprint:
    """Read the blueprint of a directory.

    Raises:
        CheckpointError: a file that is missing or broken, or an architecture that is not supported.
    """
    config_file = directory / "config.json"
    raw = read_json(config_file)
    architecture = _architecture(raw, config_file)
    with config_errors(config_file):
        if architecture in ENCODERS:
            family, changes, key_map = ENCODERS[architecture]
            labels: tuple[str, ...] = ()
            config = replace(family.config(raw, 0), **changes)
        else:
            family, key_map = ARCHITECTURES[architecture]
            labels = read_labels(raw)
            config = family.config(raw, len(labels))
    preprocessing_file, processor = read_processor(directory)
    with config_errors(preprocessing_file):
        preprocessing = from_hugging_face(processor, family.processor)
        input_size(preprocessing)
    return Blueprint(
        name=directory.resolve().name,
        architecture=architecture,
        config=config,
        key_map=key_map(config),
        preprocessing=preprocessing,
        labels=labels,
        weights=find_weights(directory),
        resampling=family.resampling,
        interpolates=family.interpolates,
        problem_type=raw.get("problem_type"),
    )


def read_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Read the image processor: that of processor_config.json if that has it, as transformers looks for it.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
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


def _architecture(raw: dict[str, Any], path: Path) -> str:
    named = raw.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and len(named) == 1 else None
    if architecture in ARCHITECTURES or architecture in ENCODERS:
        return architecture
    if architecture is None and named:
        raise CheckpointError(f"{path}: architectures {named!r} is not supported; it must be a list of one name")
    what = f"architecture {architecture!r} is not supported" if architecture else "no architecture is named"
    for pattern, reason in _WHY_NOT.items():
        if re.fullmatch(pattern, architecture or ""):
            raise CheckpointError(f"{path}: {architecture} {reason}")
    others = "docs/models.md has the encoders, and the models that transformers or timm run"
    raise CheckpointError(f"{path}: {what}; supported are {', '.join(ARCHITECTURES)}; {others}")


def read_labels(raw: dict[str, Any]) -> tuple[str, ...]:
    """Return `id2label` in class order; without it, as many `LABEL_i` as `num_labels` says (transformers' default is 2).

    Raises:
        ValueError: they are not numbered from 0, or contradict `num_labels`.
    """
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

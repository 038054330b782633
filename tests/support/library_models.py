"""Small Swin of transformers and small ResNet of timm, on disk."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import timm  # isort: skip

SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def write_swin(directory: Path, **said: Any) -> Path:
    """Write a small Swin whose config.json has these keys too."""
    sizes: dict[str, Any] = {**SWIN, "num_labels": 3}
    transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).save_pretrained(directory)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    edit_json(directory / "config.json", **said)
    return directory


def write_resnet(directory: Path, **said: Any) -> Path:
    """Write a small ResNet with timm's config.json, which has these keys too."""
    arguments: dict[str, Any] = {"layers": [1, 1, 1, 1]}
    model = timm.create_model("resnet18", num_classes=3, **arguments)
    timm.models.save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
    edit_json(directory / "config.json", **said)
    return directory


def edit_json(file: Path, **said: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))


def edit_weights(directory: Path, added: dict[str, torch.Tensor] | None = None, drop: str = "") -> None:
    """Leave out the tensors whose names begin so, and add others."""
    file = directory / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if not drop or not key.startswith(drop)}
    save_file({**kept, **(added or {})}, file)

"""Benchmark models: the bundled one, and three at 224 pixels with random weights, in Hugging Face's layout."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.settings import BUNDLED_MODEL

_PATCH_SIZE, _CLASSES = 16, 1000

_PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """Model with the parameters of its measurement."""

    name: str
    title: str
    width: int | None
    """Width of a ViT with random weights; None for the bundled model."""
    slice_s: float
    """Seconds of a measurement, several times those of a batch."""
    peer_batch_size: int
    """Smallest batch at which the peers' engine reaches its throughput."""
    depth: int = 12
    """Blocks of a ViT with random weights."""

    def directory(self, below: Path) -> Path:
        """Return the checkpoint; create it if it is missing."""
        if self.width is None:
            return BUNDLED_MODEL
        directory = below / self.name
        if not (directory / "model.safetensors").exists():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
            (directory / "config.json").write_text(json.dumps(_config(self.width, self.depth)))
            save_file(_random_weights(self.width, self.depth), directory / "model.safetensors", metadata={"format": "pt"})
        return directory


MODELS = (
    BenchmarkModel("bundled", "vit-small-everyday64 (ViT-S/14 at 84)", None, 3, 16),
    BenchmarkModel("vit-tiny", "ViT-Ti/16 at 224", 192, 3, 16),
    BenchmarkModel("vit-base", "ViT-B/16 at 224", 768, 12, 8),
)
VIT_LARGE = BenchmarkModel("vit-large", "ViT-L/16 at 224", 1024, 12, 8, depth=24)
"""Measured on GPUs alone."""


def _config(width: int, depth: int) -> dict[str, object]:
    """Return a configuration with heads of 64 and an MLP of four times the width, as published up to ViT-L."""
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": 224,
        "patch_size": _PATCH_SIZE,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "id2label": {str(index): f"class {index}" for index in range(_CLASSES)},
        "label2id": {f"class {index}": index for index in range(_CLASSES)},
    }


def _random_weights(width: int, depth: int) -> dict[str, Tensor]:
    """Return weights with transformers' names, wide enough that answers differ between images."""
    random = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=random) * 0.05

    def add_linear(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    add("vit.embeddings.cls_token", 1, 1, width)
    add("vit.embeddings.position_embeddings", 1, 1 + (224 // _PATCH_SIZE) ** 2, width)
    add("vit.embeddings.patch_embeddings.projection.weight", width, 3, _PATCH_SIZE, _PATCH_SIZE)
    add("vit.embeddings.patch_embeddings.projection.bias", width)
    for block in (f"vit.encoder.layer.{index}" for index in range(depth)):
        for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            add_linear(f"{block}.{part}", width, width)
        add_linear(f"{block}.attention.output.dense", width, width)
        add_linear(f"{block}.intermediate.dense", width, 4 * width)
        add_linear(f"{block}.output.dense", 4 * width, width)
        add_norm(f"{block}.layernorm_before")
        add_norm(f"{block}.layernorm_after")
    add_norm("vit.layernorm")
    add_linear("classifier", width, _CLASSES)
    return state

"""Checkpoint files of tests, and the comparison of their logits."""

import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from model.checkpoints.checkpoint import load_checkpoint
from tests.support.weights import randomise

State = dict[str, torch.Tensor]


def assert_same_logits(expected: Callable[[torch.Tensor], Any], path: Path, architecture: str | None, size: int = 224) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    loaded = load_checkpoint(path, architecture)
    with torch.no_grad():
        answer = expected(images)
        logits = getattr(answer, "logits", answer)
        assert logits.abs().max() > 0.1
        torch.testing.assert_close(loaded.model(images), logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


def lightning(state: State, prefix: str) -> dict[str, Any]:
    """Return a checkpoint as Lightning's trainer saves it."""
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict({prefix + key: value for key, value in state.items()}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.001, "args": Namespace(size=224)},
    }


def save_hugging_face_vit(directory: Path) -> Any:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
    )
    model: Any = randomise(transformers.ViTForImageClassification(config)).eval()
    model.save_pretrained(directory)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


def write_shards(directory: Path) -> Path:
    save_file({"a": TENSORS["a"]}, directory / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"]}, directory / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory / "model.safetensors.index.json"

"""Relevance of patches: the recorded model, and both methods against literal computations on transformers' models."""

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from app.settings import BUNDLED_MODEL
from benchmarks.faithfulness import ORDERS, Judge, encoded_images
from model.checkpoints.checkpoint import load_checkpoint
from model.config import ViTConfig
from model.relevance import RecordedModel
from model.vit import VisionTransformer
from tests.support.models import ROOT
from tests.support.small_vit import SIZES, write_small_vit
from tests.support.weights import lively

SMALL = ViTConfig(num_classes=7, image_size=40, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=48)
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pooling": "avg"},
    "mean without class token": {"pooling": "avg", "class_token": False, "fc_norm": True},
    "class token and mean": {"pooling": "token+avg", "layer_scale": True},
    "distillation token": {"dist_token": True, "pooling": "token+dist"},
    "two heads": {"dist_token": True, "head_dist": True},
    "registers": {"reg_tokens": 3, "pos_embed_coverage": "class+patches"},
    "registers, mean": {"reg_tokens": 3, "pooling": "avg", "pos_embed_coverage": "patches"},
    "rotary positions": {"rope": "dinov3", "pos_embed_coverage": "none", "reg_tokens": 2},
    "relative positions": {"relative_positions": True, "pos_embed_coverage": "none", "pooling": "avg", "fc_norm": True},
    "attention pooling": {"pooling": "map", "class_token": False},
    "attention pooling for features alone": {"pooling": "avg", "class_token": False, "attention_pool": True},
    "gated MLP": {"swiglu": True, "mlp_norm": True, "activation": "silu"},
    "encoder": {"num_classes": 0},
    "encoder with projection": {"num_classes": 0, "projection_dim": 12, "pre_norm": True},
    "patches that leave a border": {"image_size": 43},
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind: str) -> VisionTransformer:
    model: VisionTransformer = lively(VisionTransformer(replace(SMALL, **KINDS[kind])))
    return model


def linear(module: torch.nn.Module) -> torch.nn.Linear:
    assert isinstance(module, torch.nn.Linear)
    return module


def image_for(config: ViTConfig, seed: int = 0) -> torch.Tensor:
    shape = (1, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_kind
def test_recorded_model_answers_the_same(kind: str) -> None:
    model = small(kind)
    image = image_for(model.config)
    with torch.no_grad():
        expected = copy.deepcopy(model)(image)[0]
    recording = RecordedModel(model).run(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(recording.output.detach(), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_not_kept() -> None:
    recorded = RecordedModel(small("attention pooling"))
    held = weakref.ref(recorded.run(image_for(recorded.config)).attention[0])
    assert held() is None


@every_kind
def test_attention_is_a_distribution(kind: str) -> None:
    recorded = RecordedModel(small(kind))
    recording = recorded.run(image_for(recorded.config))
    attention = [*recording.attention, *([] if recording.pool_attention is None else [recording.pool_attention])]
    assert len(attention) == SMALL.depth + (kind == "attention pooling")
    for weights in attention:
        assert weights.detach().min() >= 0
        assert weights.detach().std() > 1e-3
        torch.testing.assert_close(weights.detach().sum(dim=-1), torch.ones(weights.shape[:-1]))


@every_kind
def test_each_patch_has_one_number(kind: str) -> None:
    recorded = RecordedModel(small(kind))
    config = recorded.config
    recording = recorded.run(image_for(config))
    rollout = recording.rollout()
    assert rollout.shape == (25,)
    assert rollout.min() > 0
    assert float(rollout.sum()) <= 1 + 1e-5  # what prefix tokens pass on is cut off
    assert (float(rollout.sum()) < 0.999) == (config.num_prefix_tokens > 0)
    for index in range(config.num_classes):
        relevance = recorded.run(image_for(config)).relevance(index)
        assert relevance.shape == (25,)
        assert relevance.min() >= 0


def literal(model: Any, image: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute rollout and relevance for the class token as their papers write them, on a model of transformers."""
    output = model(pixel_values=image.requires_grad_(), output_attentions=True)
    gradients = torch.autograd.grad(output.logits[0, index], output.attentions)
    tokens = output.attentions[0].shape[-1]
    rollout, relevance = torch.eye(tokens), torch.eye(tokens)
    for attention, gradient in zip(output.attentions, gradients, strict=True):
        mean = sum(attention[0, head] for head in range(attention.shape[1])) / attention.shape[1]
        mixed = mean + torch.eye(tokens)
        rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
        positive = (gradient[0] * attention[0]).clamp(min=0)
        relevance = relevance + positive.mean(dim=0) @ relevance
    return rollout[0, 1:].detach(), relevance[0, 1:].detach()


def test_both_equal_the_papers_formulas(tmp_path: Path) -> None:
    directory = write_small_vit(tmp_path / "model", 5)
    sizes: dict[str, Any] = {**SIZES, "num_labels": 5}
    configuration = transformers.ViTConfig(**sizes)
    reference = lively(transformers.ViTForImageClassification._from_config(configuration, attn_implementation="eager"))
    reference.save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").replace(directory / "model.safetensors")
    recorded = RecordedModel(load_checkpoint(directory).model)  # type: ignore[arg-type]  # a model of our own
    image = image_for(recorded.config)
    recording = recorded.run(image)
    assert (recording.output < 0).any() and (recording.output > 0).any()
    for index in range(5):
        rollout, relevance = literal(reference, image.clone(), index)
        torch.testing.assert_close(recording.rollout(), rollout, rtol=1e-5, atol=0)
        assert relevance.max() > 1e-4
        torch.testing.assert_close(
            recorded.run(image).relevance(index), relevance, rtol=1e-4, atol=1e-5 * float(relevance.max())
        )


def zero_branches(model: VisionTransformer) -> VisionTransformer:
    """Let each block pass its input on unchanged."""
    for name, parameter in model.named_parameters():
        if ".attn.proj." in name or ".mlp.fc2." in name:
            torch.nn.init.zeros_(parameter)
    return model


def test_mean_of_unchanged_patches_is_exact() -> None:
    model = zero_branches(small("mean"))
    image = image_for(SMALL)
    with torch.no_grad():
        tokens = model.norm(model.embed(image))[0, 1:]
        own = tokens @ linear(model.head).weight.T / len(tokens)
    recorded = RecordedModel(model)
    for index in range(SMALL.num_classes):
        assert (own[:, index] > 0).any() and (own[:, index] < 0).any()
        torch.testing.assert_close(recorded.run(image).relevance(index), own[:, index].clamp(min=0), rtol=1e-5, atol=1e-6)


def test_negative_logit_is_explained_too() -> None:
    model = small("class token")
    linear(model.head).bias.data -= 100  # softmax does not change
    shifted = RecordedModel(model).run(image_for(SMALL))
    expected = RecordedModel(small("class token")).run(image_for(SMALL)).relevance(0)
    assert shifted.output.max() < 0 < expected.max()
    torch.testing.assert_close(shifted.relevance(0), expected)


def test_rollout_needs_no_gradients() -> None:
    recorded = RecordedModel(small("class token and mean"))
    image = image_for(recorded.config)
    without = recorded.run(image, gradients=False)
    assert not without.output.requires_grad
    torch.testing.assert_close(without.rollout(), recorded.run(image).rollout())
    with pytest.raises(RuntimeError):
        without.relevance(0)


def test_patches_named_first_matter_most() -> None:
    judge = Judge(str(BUNDLED_MODEL), steps=6)
    found = np.stack([judge.areas(image) for image in encoded_images(ROOT / "tests" / "photographs", 6)])
    assert len(found) == 6
    deletion, insertion = found.mean(axis=0).T
    random = ORDERS.index("random")
    for method in (ORDERS.index("relevance"), ORDERS.index("rollout")):
        assert deletion[method] < deletion[random]
        assert insertion[method] > insertion[random]

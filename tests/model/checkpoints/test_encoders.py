"""Encoders without a classifier: the features of their library, and a service that says what it is and refuses /predict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from model.checkpoints.checkpoint import load_checkpoint
from tests.support.weights import randomise

import timm  # isort: skip

SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 16,
}
PLAIN = SMALL | {"intermediate_size": 192}
NESTED: dict[str, Any] = {
    "vision_config": PLAIN,
    "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 100},
}


def pooled(output: Any) -> Tensor:
    features: Tensor = output.pooler_output
    return features


def class_token(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state
    return tokens[:, 0]


def projected(output: Any) -> Tensor:
    features: Tensor = output.image_embeds
    return features


def mean(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state
    return tokens.mean(dim=1)


ENCODERS: dict[str, tuple[dict[str, Any], Callable[[Any], Tensor]]] = {
    "ViTModel": (PLAIN, class_token),
    "DeiTModel": (PLAIN, class_token),
    "ViTMSNModel": (PLAIN, class_token),
    "IJepaModel": (PLAIN, mean),
    "BeitModel": (PLAIN | {"use_relative_position_bias": True}, pooled),
    "Dinov2Model": (SMALL, pooled),
    "Dinov2WithRegistersModel": (SMALL, pooled),
    "DINOv3ViTModel": (PLAIN | {"num_register_tokens": 4}, pooled),
    "DINOv3ViTModel, gated": (PLAIN | {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu"}, pooled),
    "SiglipVisionModel": (PLAIN, pooled),
    "SiglipModel": (NESTED, pooled),
    "CLIPVisionModel": (PLAIN, pooled),
    "CLIPVisionModelWithProjection": (PLAIN | {"projection_dim": 40}, projected),
    "CLIPModel": (NESTED | {"projection_dim": 48}, pooled),
    "MetaClip2VisionModel": (PLAIN, pooled),
    "MetaClip2VisionModelWithProjection": (PLAIN | {"projection_dim": 40}, projected),
    "MetaClip2Model": (NESTED, pooled),
}


def save(name: str, directory: Path) -> Any:
    architecture = name.partition(",")[0]
    model_class = getattr(transformers, architecture)
    model = randomise(model_class(model_class.config_class(**ENCODERS[name][0])))
    model.save_pretrained(directory)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.get_image_features if architecture in {"SiglipModel", "CLIPModel", "MetaClip2Model"} else model


@pytest.mark.parametrize("name", ENCODERS)
def test_features_equal_the_librarys(name: str, tmp_path: Path) -> None:
    theirs = save(name, tmp_path)
    ours = load_checkpoint(tmp_path)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, features = ENCODERS[name][1](theirs(images)), ours.model(images)
    assert (ours.labels, ours.activation, ours.model.config.output_dim) == ((), "none", features.shape[1])
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()  # they depend on the image
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_siglip_224", "vit_base_patch16_siglip_gap_224", "vit_base_patch16_dinov3", "beit_base_patch16_224"],
)
def test_timm_features_equal_the_librarys(name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": 96, "depth": 2, "num_heads": 3}
    theirs = randomise(timm.create_model(name, num_classes=0, **sizes))
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True, model_args=sizes)
    ours = load_checkpoint(tmp_path)
    size = ours.model.config.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, features = theirs(images), ours.model(images)
    assert (ours.labels, features.shape) == ((), (3, 96))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_rotary_positions_fit_any_size(tmp_path: Path) -> None:
    theirs = save("DINOv3ViTModel", tmp_path)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, features = theirs(images).pooler_output, load_checkpoint(tmp_path, image_size=96).model(images)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))

"""Attention pooling of SigLIP's classifiers: a second kind of features, where the file has its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from app.engines.pixel_model import PixelModel
from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.vit import VisionTransformer
from tests.support.library_models import edit_weights
from tests.support.weights import lively

VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32}
PROBE = "vision_model.head.probe"
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write(directory: Path, **vision: Any) -> Any:
    """Write a small SigLIP classifier, and return it."""
    config = transformers.SiglipConfig(vision_config=VISION | {"patch_size": 8} | vision)
    model = lively(transformers.SiglipForImageClassification(config))
    model.save_pretrained(directory)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def model_of(directory: Path) -> VisionTransformer:
    model = load_checkpoint(directory).model
    assert isinstance(model, VisionTransformer)
    return model


def test_attention_pool_equals_the_librarys(tmp_path: Path) -> None:
    theirs = write(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert list(ours.features.items()) == [("avg", 48), ("map", 48)]
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model = model_of(tmp_path)
    assert model.attn_pool is not None
    with torch.no_grad():
        expected, found = theirs.vision_model(images).pooler_output, model.attn_pool(model.forward_features(images))
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()  # they depend on the image
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("missing", ["vision_model.head.", PROBE, "vision_model.head.mlp.fc2.bias"])
def test_missing_pool_is_not_offered(tmp_path: Path, missing: str) -> None:
    theirs = write(tmp_path)
    edit_weights(tmp_path, drop=missing)
    ours = load_checkpoint(tmp_path)
    assert list(ours.features) == ["avg"]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(images).logits
    torch.testing.assert_close(ours.model(images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_model_saved_without_a_pool_loads(tmp_path: Path) -> None:
    write(tmp_path, vision_use_head=False)
    assert list(load_checkpoint(tmp_path).features) == ["avg"]


def test_pool_of_another_width_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit_weights(tmp_path, {PROBE: torch.ones(1, 1, 5)})
    with pytest.raises(CheckpointError, match=r"vision_model\.head\.probe has shape \(1, 1, 5\), expected \(1, 1, 48\)"):
        load_checkpoint(tmp_path)


def test_pool_is_left_out_without_features(tmp_path: Path) -> None:
    write(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    model = model_of(tmp_path)
    plain = PixelModel(model, checkpoint.preprocessing)
    full = PixelModel(model, checkpoint.preprocessing, with_features=True)
    assert not [name for name in plain.state_dict() if "attn_pool" in name]
    assert torch.equal(plain(PIXELS), full(PIXELS)[:, :2])
    assert full(PIXELS).shape == (2, 2 + 48 + 48)

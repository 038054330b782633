"""Every model of the table in docs/models.md: the logits of its own library, from a file's bytes to the numbers."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from tests.support.comparison import difference_by_default, measure, photographs
from tests.support.models import ROOT, encode
from tests.support.references import Reference, hugging_face_references, references, timm_families
from tests.support.weights import lively, randomise

import timm  # isort: skip
import torchvision  # isort: skip
from timm.data.config import resolve_data_config  # isort: skip
from timm.data.transforms_factory import create_transform  # isort: skip

from app.decoding.image import ImageDecoder
from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.preprocessing import Preprocessing, from_hugging_face, from_timm

REFERENCES = references()
ARCHITECTURES = {reference.name for reference in (*hugging_face_references(), *timm_families())}
"""References that differ in what is computed; the others differ in size, or in how a file was written."""
TOLERANCE = 1e-4
"""Tolerance as a part of the largest logit, in float32."""
OPENVINO_TOLERANCE = 1e-3
NEIGHBOURS_TOLERANCE = 1e-5
"""Tolerance between an image alone and in a batch, by OpenVINO."""
DEFAULT_TOLERANCE = 0.005
"""Tolerance as a part of the largest logit, with all defaults, on photographs."""


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: f"{reference.library}: {reference.name}")
def test_logits_equal_the_librarys(reference: Reference, tmp_path: Path) -> None:
    found = measure(reference, tmp_path / "model", lively, quick=True, openvino=reference.name in ARCHITECTURES)
    assert found.largest_logit > 0.2
    assert found.spread > 0.1
    assert max(found.torch, found.torch_neighbours) <= TOLERANCE
    assert found.openvino <= OPENVINO_TOLERANCE
    assert found.openvino_neighbours <= NEIGHBOURS_TOLERANCE


@pytest.mark.parametrize(
    "name", ["ViT", "SigLIP", "BEiT, relative positions", "vit_tiny_patch16_224", "vit_b_32 IMAGENET1K_V1"]
)
def test_defaults_answer_as_the_library_does(name: str, tmp_path: Path) -> None:
    reference = next(reference for reference in REFERENCES if reference.name == name)
    assert difference_by_default(reference, tmp_path / "model") <= DEFAULT_TOLERANCE


def test_the_table_in_the_docs_has_every_model() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for reference in REFERENCES:
        assert f"| {reference.library} | {reference.name} |" in page


def assert_logits_agree(model: Any, expected: torch.Tensor, images: torch.Tensor) -> None:
    with torch.no_grad():
        logits = model(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("size", [48, 128])
def test_image_size_matches_transformers(tmp_path: Path, size: int) -> None:
    REFERENCES[0].write(tmp_path, randomise)
    theirs: Any = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, size, size)
    ours = load_checkpoint(tmp_path, image_size=size)
    assert (ours.model.config.image_size, ours.preprocessing.output_size) == (size, (size, size))
    with torch.no_grad():
        assert_logits_agree(ours.model, theirs(images, interpolate_pos_encoding=True).logits, images)


@pytest.mark.parametrize("name", ["SigLIP", "CLIP", "I-JEPA", "DiT, absolute positions"])
def test_image_size_of_families(tmp_path: Path, name: str) -> None:
    next(reference for reference in REFERENCES if reference.name == name).write(tmp_path, randomise)
    theirs: Any = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = theirs(images, interpolate_pos_encoding=True).logits
        assert_logits_agree(load_checkpoint(tmp_path, image_size=96).model, expected, images)


def test_relative_positions_refuse_another_size(tmp_path: Path) -> None:
    next(reference for reference in REFERENCES if reference.name == "BEiT, relative positions").write(tmp_path, randomise)
    with pytest.raises(CheckpointError, match="its relative positions are for images of 64 pixels"):
        load_checkpoint(tmp_path, image_size=96)


@pytest.mark.parametrize("size", [160, 256])
def test_image_size_matches_timm(tmp_path: Path, size: int) -> None:
    model = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=7))
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    model.set_input_size(img_size=size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert_logits_agree(load_checkpoint(tmp_path, image_size=size).model, model(images), images)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [192, 256, 384, 448])
def test_pixels_at_another_size_are_timms(size: int, crop_pct: float, crop_mode: str) -> None:
    cfg = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": "bicubic", "input_size": (3, 224, 224)}
    transform = create_transform(**resolve_data_config({"input_size": (3, size, size)}, pretrained_cfg=cfg))
    ours = from_timm(cfg, 224).at_size(size)
    with Image.open(io.BytesIO(photographs()[0])) as image:
        assert_pixels_agree(ours, image, transform(image).numpy())


@pytest.mark.parametrize(("size", "other"), [(224, 256), (224, 384), (384, 224), (384, 512)])
def test_pixels_at_another_size_are_convnexts(size: int, other: int) -> None:
    content = ConvNextImageProcessorPil(size={"shortest_edge": size}).to_dict() | {
        "image_processor_type": "ConvNextImageProcessor"
    }
    processor = ConvNextImageProcessorPil(size={"shortest_edge": other})
    ours = from_hugging_face(json.loads(json.dumps(content, default=str))).at_size(other)
    with Image.open(io.BytesIO(photographs()[0])) as image:
        assert_pixels_agree(ours, image, processor(image, return_tensors="np")["pixel_values"][0])


def assert_pixels_agree(ours: Preprocessing, image: Image.Image, expected: np.ndarray) -> None:
    decoder = ImageDecoder(ours, formats=frozenset({"png"}), max_bytes=10**8, max_pixels=10**7, exact=True)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (ours.mean, ours.std))
    pixels = (decoder.decode(encode(image)) * ours.scale - mean) / std
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [192, 288])
def test_image_size_matches_torchvision(tmp_path: Path, size: int) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = randomise(torchvision.models.vit_b_32(num_classes=7)).state_dict()
    torch.save(state, tmp_path / "model.pth")
    resized = torchvision.models.vit_b_32(num_classes=7, image_size=size).eval()
    resized.load_state_dict(interpolate_embeddings(size, 32, state))
    images = torch.randn(2, 3, size, size)
    ours = load_checkpoint(tmp_path / "model.pth", "torchvision/vit_b_32", size)
    assert ours.preprocessing == replace(ours.preprocessing, resize=round(256 * size / 224), crop=(size, size))
    with torch.no_grad():
        assert_logits_agree(ours.model, resized(images), images)

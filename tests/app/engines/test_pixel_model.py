"""Modules that engines run: raw pixels to what the model answers for normalised images."""

from dataclasses import replace
from pathlib import Path

import torch

from app.engines.pixel_model import LibraryPixelModel, PixelModel
from model.checkpoints.checkpoint import load_checkpoint
from model.library.library_model import LibraryModel
from model.preprocessing import Preprocessing
from tests.support.library_models import write_swin
from tests.support.models import TINY_PREPROCESSING, tiny_model

PIXELS = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: torch.Tensor, how: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
    return ((pixels.flip(1) if how.bgr else pixels) * how.scale - mean) / std


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_own_model_takes_blue_first() -> None:
    how = replace(TINY_PREPROCESSING, bgr=True)
    model = tiny_model()
    assert_close(PixelModel(model, how)(PIXELS), model(normalised(PIXELS, how)))


def test_library_model_takes_blue_first(tmp_path: Path) -> None:
    model = load_checkpoint(write_swin(tmp_path)).model
    assert isinstance(model, LibraryModel)
    for bgr in (False, True):
        how = replace(TINY_PREPROCESSING, bgr=bgr)
        assert_close(LibraryPixelModel(model, how)(PIXELS), model(normalised(PIXELS, how)))


def test_library_model_shares_its_weights(tmp_path: Path) -> None:
    model = load_checkpoint(write_swin(tmp_path)).model
    assert isinstance(model, LibraryModel)
    made = LibraryPixelModel(model, TINY_PREPROCESSING)
    assert [one.data_ptr() for one in made.parameters()] == [other.data_ptr() for other in model.parameters()]
    made.to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.float32

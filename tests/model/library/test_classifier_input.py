"""Features of models that a library runs: found where one linear layer makes the logits, and nowhere else."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.engines.pixel_model import LibraryPixelModel
from model.checkpoints.checkpoint import load_checkpoint
from model.library import library_model
from model.library.library_model import LibraryConfig, LibraryModel
from tests.support.library_models import write_resnet, write_swin
from tests.support.models import TINY_PREPROCESSING

PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """A linear layer of three classes on the mean colour of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier: nn.Module = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.mean(dim=(2, 3)))


class TwoHeads(Head):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images) + self.other(images.mean(dim=(2, 3)))) / 2


class ChangedInPlace(Head):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mul_(2)


class TwoRuns(Head):
    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images[..., :16]) + super().forward(images[..., 16:])) / 2


class PixelByPixel(Head):
    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.flatten(2).transpose(1, 2))[:, 0]


class Convolution(Head):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).mean(dim=(2, 3))


def library_model_of(module: nn.Module) -> LibraryModel:
    config = LibraryConfig("timm", "1", "toy", "{}", num_classes=3, image_size=32, load=lambda _: module)
    return LibraryModel(config, module)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (TwoHeads, "its logits are not what the classifier gives"),
        (ChangedInPlace, "its logits are not what the classifier gives"),
        (TwoRuns, "its classifier runs 2 times, not once"),
        (PixelByPixel, "its classifier reads (1, 1024, 3), not one vector for each image"),
        (Convolution, "its classifier is of the type Conv2d, not one linear layer"),
    ],
)
def test_other_heads_give_no_features(make: Callable[[], nn.Module], reason: str) -> None:
    model = library_model_of(make())
    logits = model.find_features(torch.ones(1, 3, 32, 32))
    assert (dict(model.features), model.why_no_features) == ({}, reason)
    model.give_features()
    assert torch.equal(model(torch.ones(1, 3, 32, 32)), logits)


def test_features_stand_behind_the_logits() -> None:
    model = library_model_of(Head())
    images = torch.randn(2, 3, 32, 32)
    logits = model.find_features(images)
    assert (dict(model.features), model.why_no_features) == ({"pooled": 3}, "")
    model.give_features()
    assert torch.equal(model(images), torch.cat((logits, images.mean(dim=(2, 3))), dim=1))


@pytest.mark.parametrize("write", [write_swin, write_resnet])
def test_logits_stay_bit_for_bit(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    model = load_checkpoint(write(tmp_path)).model
    assert isinstance(model, LibraryModel)
    plain = LibraryPixelModel(model, TINY_PREPROCESSING)
    full = LibraryPixelModel(model, TINY_PREPROCESSING, with_features=True)
    assert (plain.output_dim, full.output_dim) == (3, 3 + model.features["pooled"])
    assert torch.equal(full(PIXELS)[:, :3], plain(PIXELS))
    assert plain.fingerprint != full.fingerprint
    assert [one.data_ptr() for one in full.parameters()] == [other.data_ptr() for other in model.parameters()]


def test_reason_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: Any) -> str:
        raise ValueError("its classifier is odd")

    monkeypatch.setattr(library_model, "find_classifier", refuse)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(write_swin(tmp_path))
    assert (dict(loaded.features), loaded.why_no_features) == ({}, "its classifier is odd")
    assert "SwinForImageClassification gives no features of images: its classifier is odd" in caplog.text

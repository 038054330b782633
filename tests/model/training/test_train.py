import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.decoding.pool.select import image_decoder
from app.settings import read_settings
from model.checkpoints.checkpoint import load_checkpoint
from model.training.augment import random_view
from model.training.dataset import LabelledImages
from model.training.settings import TrainSettings
from model.training.train import (
    AugmentedStream,
    TrainError,
    parameter_groups,
    schedule,
    train,
    training_preprocessing,
)
from tests.support.models import TINY_PREPROCESSING, encode, png, tiny_model

DECODE = image_decoder(read_settings(), TINY_PREPROCESSING).decode_whole

SETTINGS = TrainSettings(epochs=6, batch_size=8, learning_rate=3e-3, layer_decay=1.0, image_size=28, save_every=2)


def colours(count: int) -> LabelledImages:
    """Return red, green and blue images, which a model learns in seconds."""
    images = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 90, (28, 28, 3), dtype=np.uint8)
        pixels[..., i % 3] += 150
        images.append(encode(Image.fromarray(pixels)))
    return LabelledImages(("red", "green", "blue"), images, [i % 3 for i in range(count)])


def test_training_writes_a_checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> None:
    train(tiny_checkpoint, colours(48), DECODE, tmp_path, training_preprocessing(28), SETTINGS)

    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in history]
    assert [row["step"] for row in history] == list(range(1, 37))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert load_checkpoint(tmp_path).labels == ("red", "green", "blue")


def test_resumed_training_has_same_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    images = colours(24)
    straight = train(tiny_checkpoint, images, DECODE, tmp_path / "straight", training_preprocessing(28), SETTINGS)

    reads_left = 70  # ends in step 9 of 18, after the state of step 8 was saved

    class Interrupted(LabelledImages):
        def read(self, index: int) -> tuple[bytes, int]:
            nonlocal reads_left
            reads_left -= 1
            if reads_left == 0:
                raise KeyboardInterrupt
            return LabelledImages.read(self, index)

    interrupted = Interrupted(images.labels, images.images, images.targets)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_checkpoint, interrupted, DECODE, tmp_path / "resumed", training_preprocessing(28), SETTINGS)
    resumed = train(tiny_checkpoint, images, DECODE, tmp_path / "resumed", training_preprocessing(28), SETTINGS)

    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "history.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 19))
    for key, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_other_recipe_is_not_resumed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    images, once = colours(24), replace(SETTINGS, epochs=1.0)
    train(tiny_checkpoint, images, DECODE, tmp_path, training_preprocessing(28), once)
    with pytest.raises(TrainError, match="from a training with other settings; remove it"):
        train(tiny_checkpoint, images, DECODE, tmp_path, training_preprocessing(28), SETTINGS)
    relabelled = replace(images, labels=("a", "b", "c"))
    with pytest.raises(TrainError, match="with other labels"):
        train(tiny_checkpoint, relabelled, DECODE, tmp_path, training_preprocessing(28), once)
    (tmp_path / "training_state.pt").write_bytes(b"broken")
    with pytest.raises(TrainError, match="cannot be read; remove it"):
        train(tiny_checkpoint, images, DECODE, tmp_path, training_preprocessing(28), once)


def test_epochs_differ_in_order_only() -> None:
    images = LabelledImages(("a",), [png(0)] * 50, list(range(50)))
    stream = AugmentedStream(images, DECODE, 28, seed=1)
    first, second = ([stream[i][1] for i in range(start, start + 50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert torch.equal(stream[7][0], AugmentedStream(images, DECODE, 28, seed=1)[7][0])
    assert not torch.equal(stream[7][0], stream[57][0])


def test_random_view_has_requested_size() -> None:
    for size in ((64, 64), (10, 300), (1, 1)):
        view = random_view(Image.new("RGB", size), 28, random.Random(0))
        assert (view.shape, view.dtype) == ((3, 28, 28), torch.uint8)


def test_layer_decay_and_weight_decay() -> None:
    model = tiny_model().requires_grad_(True)
    groups = parameter_groups(model, TrainSettings(layer_decay=0.5, weight_decay=0.1))
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    names = dict(model.named_parameters())

    assert len(group_of) == len(names)
    scales = {name: group_of[id(names[name])]["scale"] for name in ("head.weight", "blocks.1.attn.qkv.weight", "cls_token")}
    assert scales == {"head.weight": 1.0, "blocks.1.attn.qkv.weight": 0.5, "cls_token": 0.125}
    decays = {name for name in names if group_of[id(names[name])]["weight_decay"]}
    assert decays == {name for name in names if name.endswith("weight") and "norm" not in name}


def test_learning_rate_schedule() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-3)

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.images import ImageSet
from benchmarks.models import BenchmarkModel
from model.checkpoints.checkpoint import load_checkpoint
from model.config import ViTConfig


def test_random_model_loads(tmp_path: Path) -> None:
    directory = BenchmarkModel("small", "", width=64, slice_s=1, peer_batch_size=1).directory(tmp_path)
    checkpoint = load_checkpoint(directory)
    config = checkpoint.model.config
    assert isinstance(config, ViTConfig)
    assert (config.num_tokens, config.num_heads, len(checkpoint.labels)) == (197, 1, 1000)


def test_images_are_reproducible(tmp_path: Path) -> None:
    images = ImageSet("tiny", (64, 48), 4)
    first = [file.read_bytes() for file in images.files(tmp_path / "first")]
    assert first == [file.read_bytes() for file in images.files(tmp_path / "second")]
    assert len(set(first)) == 4
    with Image.open(images.files(tmp_path / "first")[0]) as image:
        assert image.size == (64, 48)
        assert np.asarray(image).std() > 10

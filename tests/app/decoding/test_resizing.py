"""Resizing of decoded JPEGs, compared with Pillow's."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from app.decoding import resizing
from app.decoding.pool.select import make_decoder
from app.decoding.resizing import resize
from app.decoding.size import Size
from app.metrics import Metrics
from app.pixels import Pixels
from app.settings import read_settings
from tests.support.models import ROOT

PHOTOS = sorted((ROOT / "examples" / "images").glob("*.jpg"))
MODES = ["bilinear", "bicubic"]


def photo(path: Path, size: Size) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize(size)


def rgbx(image: Image.Image) -> NDArray[np.uint8]:
    """Return pixels as libjpeg-turbo gives them; the fourth channel has no meaning."""
    noise = np.random.default_rng(0).integers(0, 256, (image.height, image.width, 1), np.uint8)
    return np.concatenate([np.asarray(image), noise], axis=2)


def by_pillow(image: Image.Image, full: Size, mode: str) -> Pixels:
    return np.asarray(image.resize(full, Image.Resampling[mode.upper()])).transpose(2, 0, 1)


SIZES = pytest.mark.parametrize(
    ("size", "full"),
    [
        ((500, 375), (85, 64)),
        ((375, 500), (224, 298)),
        ((1000, 750), (341, 256)),
        ((300, 200), (450, 300)),
        ((300, 200), (300, 70)),
        ((300, 200), (70, 200)),
        ((64, 64), (64, 64)),
        ((301, 3), (7, 5)),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)


@pytest.mark.parametrize("mode", MODES)
@SIZES
@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_nearly_all_pixels_are_pillows(path: Path, size: Size, full: Size, mode: str) -> None:
    """Coefficients of 16 bits round one sample in a hundred otherwise; the wrong order of passes, one in six."""
    image = photo(path, size)
    pixels, expected = resize(rgbx(image), full, mode), by_pillow(image, full, mode)
    assert pixels.shape == (3, full[1], full[0])
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 2
    enlarged = full[0] > size[0]
    assert (difference > 0).mean() < (0.06 if enlarged else 0.02)


@pytest.mark.skipif(not resizing.is_vectorised, reason="without the wheel, as on Linux on ARM, bits are Pillow's")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch's kernel for bytes needs AVX2")
@pytest.mark.parametrize("mode", MODES)
@SIZES
def test_bits_are_torchs(size: Size, full: Size, mode: str) -> None:
    """Accuracies in docs/models.md were measured with its pixels."""
    image = photo(PHOTOS[0], size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(pixels, size=(full[1], full[0]), mode=mode, antialias=True)[0].numpy()
    assert (resize(rgbx(image), full, mode) == expected).all()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_no_thread_is_started() -> None:
    """Workers are forked after this, and may start none."""
    program = (
        "import os, numpy as np; from app.decoding.resizing import resize;"
        "resize(np.zeros((3000, 4000, 4), np.uint8), (1000, 1000), 'bicubic'); print(len(os.listdir('/proc/self/task')))"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert ended.stdout.strip() == b"1"


@pytest.fixture
def without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cykooz_resizer", None)
        importlib.reload(resizing)
        yield
    importlib.reload(resizing)


@pytest.mark.usefixtures("without_the_wheel")
@pytest.mark.parametrize("mode", MODES)
def test_pillow_resizes_without_the_wheel(mode: str) -> None:
    assert not resizing.is_vectorised
    image = photo(PHOTOS[0], (200, 150))
    assert (resizing.resize(rgbx(image), (85, 64), mode) == by_pillow(image, (85, 64), mode)).all()


@pytest.mark.parametrize("exact", [False, True])
def test_missing_wheel_is_logged(exact: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("app.decoding.pool.select.is_vectorised", False)
    make_decoder(read_settings(decode_isolation="thread", exact_decode=exact), Metrics())
    assert ("resized by Pillow" in caplog.text) is not exact


def test_threads_resize_at_once() -> None:
    images = [rgbx(photo(path, (500, 375))) for path in PHOTOS] * 20
    resized = partial(resize, full=(85, 64), mode="bicubic")
    with ThreadPoolExecutor(4) as pool:
        for together, alone in zip(pool.map(resized, images), map(resized, images), strict=True):
            assert (together == alone).all()

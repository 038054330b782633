"""Tiny model with random weights, and random images."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.checkpoints.checkpoint import save_checkpoint
from model.config import ViTConfig
from model.preprocessing import Preprocessing
from model.vit import VisionTransformer

ROOT = Path(__file__).parent.parent.parent

_SHARED = "TESTS_CACHE_DIR"
"""Variable by which the first process of a test run tells the others its cache."""

_MADE = None if _SHARED in os.environ else tempfile.TemporaryDirectory(prefix="vit-serve-tests-")

CACHE = os.environ[_SHARED] if _MADE is None else _MADE.name
"""Cache that all servers of all processes of a test run share, so that only the first one converts; deleted at its end."""

os.environ[_SHARED] = CACHE

UNPRIVILEGED: tuple[str, ...] = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
)
"""Prefix of a command whose process must obey file permissions even if root runs the tests."""

TINY_DINOV2 = ViTConfig(
    num_classes=10,
    image_size=28,
    patch_size=7,
    embed_dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=128,
    layer_scale=True,
    pooling="token+avg",
)
TINY_LABELS = tuple(f"class {index}" for index in range(10))
TINY_PREPROCESSING = Preprocessing(
    resize=32, crop=(28, 28), interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def tiny_model() -> VisionTransformer:
    """Return a tiny model with weights wide enough that answers differ between images."""
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(TINY_DINOV2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


def write_tiny_checkpoint(directory: Path) -> Path:
    save_checkpoint(directory, tiny_model(), TINY_PREPROCESSING, TINY_LABELS, torch.float32)
    return directory


def random_image(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    """Return an image of soft random colours, unique to its seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(seed: int) -> bytes:
    """Encode the random image of a seed as PNG."""
    return encode(random_image(seed))

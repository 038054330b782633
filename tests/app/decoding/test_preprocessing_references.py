"""Pixels compared with the libraries' own processors: every kind of image, every shape, every library."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as F
from PIL import Image, ImageOps
from timm.data.transforms_factory import create_transform
from torchvision.transforms._presets import ImageClassification
from transformers import BitImageProcessor, ViTImageProcessor
from transformers.image_transforms import convert_to_rgb
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilenet_v1.image_processing_pil_mobilenet_v1 import MobileNetV1ImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.poolformer.image_processing_pil_poolformer import PoolFormerImageProcessorPil
from transformers.models.pvt.image_processing_pil_pvt import PvtImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from app.pixels import Pixels
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, from_hugging_face, from_timm
from tests.app.decoding.decoders import decoder, oriented
from tests.support.models import encode, random_image

IMAGES: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encode(image, "JPEG", quality=92),
    "turned-jpeg": lambda image: encode(image, "JPEG", exif=oriented(6), quality=92),
    "cmyk-jpeg": lambda image: encode(image.convert("CMYK"), "JPEG", quality=92),
    "grey-jpeg": lambda image: encode(image.convert("L"), "JPEG", quality=92),
    "alpha-png": lambda image: encode(Image.merge("RGBA", (*image.split(), image.convert("L")))),
    "palette-png": lambda image: encode(image.quantize(16)),
    "palette-png-with-transparency": lambda image: encode(image.quantize(16), transparency=3),
    "grey-alpha-png": lambda image: encode(image.convert("LA")),
    "webp": lambda image: encode(image, "WEBP", quality=90),
}
SHAPES = {"landscape": (400, 301), "portrait": (221, 333), "odd": (97, 89), "tiny": (5, 3), "huge": (2400, 1801), "one": (1, 1)}

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def loaded(image_bytes: bytes) -> Image.Image:
    """Load an image as transformers does: upright, and RGB over white."""
    with Image.open(io.BytesIO(image_bytes)) as image:
        rgb: Any = convert_to_rgb(ImageOps.exif_transpose(image), return_numpy=True)
        return Image.fromarray(rgb)


def hugging_face(processor: Any) -> tuple[Preprocessing, Callable[[Image.Image], Any]]:
    content = {**processor.to_dict(), "image_processor_type": type(processor).__name__}
    steps = ("do_rescale", "do_normalize", "include_top", "do_flip_channel_order")
    raw = type(processor)(**{**processor.to_dict(), **dict.fromkeys(steps, False)})
    preprocessing = from_hugging_face(json.loads(json.dumps(content)))
    return preprocessing, lambda image: np.asarray(raw(image, return_tensors="np")["pixel_values"][0])


def timm(size: int, **config: Any) -> tuple[Preprocessing, Callable[[Image.Image], Any]]:
    transform = create_transform(input_size=(3, size, size), **{**HALF, **config}, normalize=False)
    return from_timm({**HALF, **config}, size), lambda image: np.asarray(transform(image))


def torchvision(resize: int, crop: int) -> tuple[Preprocessing, Callable[[Image.Image], Any]]:
    preset = ImageClassification(crop_size=crop, resize_size=resize, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    preprocessing = Preprocessing(resize, (crop, crop), "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="even")

    def pixels(image: Image.Image) -> Any:
        resized = F.resize(image, preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias)
        return np.asarray(F.center_crop(resized, preset.crop_size)).transpose(2, 0, 1)

    return preprocessing, pixels


LIBRARIES = {
    "ViTImageProcessor": hugging_face(ViTImageProcessorPil(size={"height": 64, "width": 64})),
    "DeiTImageProcessor": hugging_face(
        DeiTImageProcessorPil(size={"height": 72, "width": 72}, crop_size={"height": 65, "width": 65})
    ),
    "BitImageProcessor": hugging_face(BitImageProcessorPil(size={"shortest_edge": 72}, crop_size={"height": 65, "width": 65})),
    "ConvNextImageProcessor": hugging_face(ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)),
    "ConvNextImageProcessor-384": hugging_face(ConvNextImageProcessorPil(size={"shortest_edge": 384})),
    "MobileNetV1ImageProcessor": hugging_face(MobileNetV1ImageProcessorPil(size={"shortest_edge": 72}, crop_size=65)),
    "MobileNetV2ImageProcessor": hugging_face(MobileNetV2ImageProcessorPil(size={"shortest_edge": 72}, crop_size=65)),
    "MobileViTImageProcessor": hugging_face(MobileViTImageProcessorPil(size={"shortest_edge": 72}, crop_size=65)),
    "EfficientNetImageProcessor": hugging_face(EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, resample=0)),
    "PvtImageProcessor": hugging_face(PvtImageProcessorPil(size={"height": 64, "width": 64})),
    "PoolFormerImageProcessor": hugging_face(PoolFormerImageProcessorPil(size={"shortest_edge": 65}, crop_size=65)),
    "PoolFormerImageProcessor-square": hugging_face(
        PoolFormerImageProcessorPil(size={"height": 65, "width": 65}, crop_size=65)
    ),
    "timm-center": timm(65, crop_pct=0.9, crop_mode="center", interpolation="bicubic"),
    "timm-squash": timm(65, crop_pct=0.9, crop_mode="squash", interpolation="bilinear"),
    "torchvision": torchvision(72, 65),
}


def ours(preprocessing: Preprocessing, image_bytes: bytes) -> Pixels:
    return decoder(preprocessing, max_bytes=10**8, max_pixels=10**7).decode(image_bytes)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_every_shape_equals_the_library(
    library: tuple[Preprocessing, Callable[[Image.Image], Any]], shape: tuple[int, int]
) -> None:
    preprocessing, reference = library
    image_bytes = encode(random_image(1, max(8, shape[0]), max(8, shape[1])).resize(shape))
    assert np.array_equal(ours(preprocessing, image_bytes), reference(loaded(image_bytes)))


@pytest.mark.parametrize("kind", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_every_kind_equals_the_library(
    library: tuple[Preprocessing, Callable[[Image.Image], Any]], kind: Callable[[Image.Image], bytes]
) -> None:
    preprocessing, reference = library
    image_bytes = kind(random_image(2, 120, 88))
    assert np.array_equal(ours(preprocessing, image_bytes), reference(loaded(image_bytes)))


@pytest.mark.parametrize("shape", [(400, 301), (221, 333), (97, 89)], ids=str)
@pytest.mark.parametrize(
    "fast",
    [
        ViTImageProcessor(size={"height": 64, "width": 64}),
        BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 65, "width": 65}),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_fast_processors_are_one_step_away(fast: Any, shape: tuple[int, int]) -> None:
    """Their torch resize rounds differently from Pillow's; the largest difference seen is 1 of 255."""
    preprocessing, reference = hugging_face(fast)
    image_bytes = encode(random_image(3, *shape))
    difference = np.abs(ours(preprocessing, image_bytes) - reference(loaded(image_bytes)).astype(float))
    assert difference.max() <= 1

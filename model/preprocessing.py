"""Preprocessing: the steps from an image to a checkpoint's input, as data; the code that runs them is elsewhere."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from model.checkpoints.hugging_face.processor_defaults import EVERY_PROCESSOR, IMAGE_PROCESSORS
from model.checkpoints.hugging_face.processor_keys import CONVNEXT, EFFICIENTNET, MOBILEVIT, POOLFORMER, PROCESSOR
from model.checkpoints.known_keys import check_keys

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

Channels = tuple[float, float, float]
"""One number per RGB channel."""

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

_PILLOW_FILTERS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters in the order of their numbers; `resample` in preprocessor_config.json is such a number."""

_PROCESSOR_KEYS = {"ConvNext": CONVNEXT, "PoolFormer": POOLFORMER, "EfficientNet": EFFICIENTNET, "MobileViT": MOBILEVIT}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, then crop the centre, then (pixels * scale - mean) / std, per RGB channel."""

    resize: int | tuple[int, int] | None
    """Length of the shortest edge or (height, width), in pixels; None keeps the size."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop, in pixels; None does not crop."""
    interpolation: Interpolation
    mean: Channels
    std: Channels
    scale: float = 1 / 255
    crop_rounding: Literal["down", "even"] = "down"
    """Rounding of an odd crop margin: transformers rounds half a pixel down, torchvision to even."""
    crop_pct: float | None = None
    """Share of the resized image that the crop keeps on a side, if timm or ConvNext computes `resize` from it."""
    squashes_large: bool = False
    """Inputs of 384 pixels and more are resized to the square without a crop, as ConvNext does."""
    bgr: bool = False
    """The model takes blue, green and red, in this order, as MobileViT does; mean and std are in that order too."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"image_mean {self.mean} is not finite")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"image_std {self.std} must be greater than 0 for each channel")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"rescale_factor must be greater than 0, not {self.scale}")

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every output, or None if it depends on the image."""
        if self.crop is not None:
            return self.crop
        return self.resize if isinstance(self.resize, tuple) else None

    def at_size(self, image_size: int) -> "Preprocessing":
        """Return the same preprocessing for another square input size, in pixels, with the crop in proportion.

        Raises:
            ValueError: the output is not a square of a fixed size.
        """
        old = self.output_size
        if old is None or old[0] != old[1]:
            raise ValueError("the preprocessing has no square output of a fixed size, which could be changed")
        if self.crop_pct is not None:
            return self._at_size_by_crop_pct(image_size, self.crop_pct)
        match self.resize:
            case int(edge):
                resize: int | tuple[int, int] | None = round(edge * image_size / old[0])
            case (height, width):
                resize = (round(height * image_size / old[0]), round(width * image_size / old[1]))
            case None:
                resize = None
        return replace(self, resize=resize, crop=None if self.crop is None else (image_size, image_size))

    def _at_size_by_crop_pct(self, image_size: int, crop_pct: float) -> "Preprocessing":
        if self.squashes_large:
            resize, crop = _convnext(image_size, crop_pct)
            return replace(self, resize=resize, crop=crop)
        scaled = math.floor(image_size / crop_pct)
        return replace(self, resize=scaled if isinstance(self.resize, int) else (scaled, scaled), crop=(image_size, image_size))

    def describe(self) -> str:
        """Describe the steps in one line."""
        steps = []
        if isinstance(self.resize, int):
            steps.append(f"resize shortest edge to {self.resize} ({self.interpolation})")
        elif self.resize is not None:
            steps.append(f"resize to {self.resize[0]} x {self.resize[1]} ({self.interpolation})")
        if self.crop is not None:
            steps.append(f"crop centre {self.crop[0]} x {self.crop[1]}")
        order = ", channels blue, green, red" if self.bgr else ""
        return ", ".join([*steps, f"mean {_short(self.mean)}, std {_short(self.std)}{order}"])


def from_hugging_face(config: dict[str, Any], default_processor: str = "ViTImageProcessor") -> Preprocessing:
    """Read the content of a `preprocessor_config.json` as transformers does; null means false.

    Args:
        config: content of the file.
        default_processor: image processor to assume if it names none.

    Raises:
        ValueError: an unknown image processor, key or value; the message names it.
    """
    family, defaults = _image_processor(config, default_processor)
    check_keys(config, _PROCESSOR_KEYS.get(family, PROCESSOR))
    config = {**EVERY_PROCESSOR, **defaults, **config}
    square = _flag(config, "default_to_square")
    resize = _size(config["size"], square=square, key="size") if _flag(config, "do_resize") else None
    crop = _crop(config)
    if family == "ConvNext" and resize is not None:
        resize, crop = _convnext(resize, config["crop_pct"])
    if family == "PoolFormer" and resize is not None:
        resize = _poolformer(resize, config["crop_pct"])
    mean, std = _mean_and_std(config, family)
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=_interpolation(config["resample"]),
        mean=mean,
        std=std,
        scale=_number(config["rescale_factor"], "rescale_factor") if _flag(config, "do_rescale") else 1.0,
        crop_pct=_number(config["crop_pct"], "crop_pct") if family == "ConvNext" and config["crop_pct"] is not None else None,
        squashes_large=family == "ConvNext",
        bgr=_flag(config, "do_flip_channel_order"),
    )


def from_timm(config: dict[str, Any], image_size: int) -> Preprocessing:
    """Read timm's `pretrained_cfg` as timm's evaluation transform does (timm, data/transforms_factory.py).

    Args:
        config: content of `pretrained_cfg`; missing keys have timm's defaults.
        image_size: side of the model's input, in pixels.

    Raises:
        ValueError: an unknown value; the message names it.
    """
    crop_pct = _number(config.get("crop_pct") or 0.875, "crop_pct")
    if crop_pct <= 0:
        raise ValueError(f"crop_pct must be greater than 0, not {crop_pct}")
    interpolation = config.get("interpolation") or "bicubic"
    if interpolation not in _PILLOW_FILTERS:
        raise ValueError(f"interpolation {interpolation!r} is not one of {', '.join(_PILLOW_FILTERS)}")
    scaled = math.floor(image_size / crop_pct)
    resize: int | tuple[int, int]
    match config.get("crop_mode") or "center":
        case "center":
            resize = scaled
        case "squash":
            resize = (scaled, scaled)
        case mode:
            raise ValueError(f"crop_mode {mode!r} is not supported; supported are 'center' and 'squash'")
    return Preprocessing(
        resize=resize,
        crop=(image_size, image_size),
        interpolation=interpolation,
        mean=_channels(config.get("mean") or IMAGENET_MEAN, "mean"),
        std=_channels(config.get("std") or IMAGENET_STD, "std"),
        crop_rounding="even",
        crop_pct=crop_pct,
    )


def to_hugging_face(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json` that transformers reads as a BitImageProcessor.

    Raises:
        ValueError: a BitImageProcessor has no such steps.
    """
    if preprocessing.crop is None or not isinstance(preprocessing.resize, int) or preprocessing.bgr:
        raise ValueError("only a resize of the shortest edge followed by a centre crop can be written")
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize},
        "resample": _PILLOW_FILTERS.index(preprocessing.interpolation),
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.crop[0], "width": preprocessing.crop[1]},
        "do_rescale": True,
        "rescale_factor": preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _image_processor(config: dict[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    key = "feature_extractor_type" if config.get("image_processor_type") is None else "image_processor_type"
    name = config.get(key) or default
    for family, defaults in IMAGE_PROCESSORS.items():
        if name in {
            f"{family}{kind}" for kind in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
        }:
            return family, defaults
    supported = ", ".join(f"{family}ImageProcessor" for family in IMAGE_PROCESSORS)
    raise ValueError(f"{key} {name!r} is not supported; supported are {supported}")


def _convnext(size: int | tuple[int, int], crop_pct: Any) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """Return resize and crop: below 384 pixels a larger resize and a centre crop, from 384 on a resize to the square."""
    if not isinstance(size, int):
        raise ValueError("size of a ConvNextImageProcessor must be a shortest_edge, as in transformers")
    if size >= 384:
        return (size, size), None
    part = _number(crop_pct, "crop_pct")
    if not 0 < part <= size:
        raise ValueError(f"crop_pct must be greater than 0, not {crop_pct!r}")
    return int(size / part), (size, size)


def _poolformer(size: int | tuple[int, int], crop_pct: Any) -> int | tuple[int, int]:
    """Return the resize: larger by the part that the crop keeps; of a square, by its shortest edge."""
    if crop_pct is None:
        return size
    part = _number(crop_pct, "crop_pct")
    smaller = size if isinstance(size, int) else min(size)
    if not 0 < part <= smaller:
        raise ValueError(f"crop_pct must be greater than 0, not {crop_pct!r}")
    if isinstance(size, int) or size[0] == size[1]:
        return int(smaller / part)
    return int(size[0] / part), int(size[1] / part)


def _mean_and_std(config: dict[str, Any], family: str) -> tuple[Channels, Channels]:
    """Return what is subtracted from scaled pixels, and what they are divided by, in all steps together."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if family == "MobileViT":  # normalises nothing, whatever its file says
        return mean, std
    normalise, again = _flag(config, "do_normalize"), _flag(config, "include_top")  # EfficientNet's divide once more
    if normalise:
        mean = _channels(config["image_mean"], "image_mean")
    if normalise or again:
        red, green, blue = (value ** (normalise + again) for value in _channels(config["image_std"], "image_std"))
        std = (red, green, blue)
    if _flag(config, "rescale_offset") and _flag(config, "do_rescale"):
        mean = (mean[0] + 1, mean[1] + 1, mean[2] + 1)
    return mean, std


def _crop(config: dict[str, Any]) -> tuple[int, int] | None:
    wanted, size = _flag(config, "do_center_crop"), config.get("crop_size")
    if wanted and size is None:
        raise ValueError("do_center_crop is true, but there is no crop_size")
    crop = None if size is None else _size(size, square=True, key="crop_size")  # validated even if unused
    if not wanted:
        return None
    if not isinstance(crop, tuple):
        raise ValueError(f"crop_size {size!r} must give height and width")
    return crop


def _size(value: Any, *, square: bool, key: str) -> int | tuple[int, int]:
    """Read a size as files give it: a number, [h, w], {"shortest_edge": n} or {"height": h, "width": w}."""
    match _without_nulls(value):
        case {"height": int(height), "width": int(width), **rest} if min(height, width) > 0 and not rest:
            return (height, width)
        case {"shortest_edge": int(edge), **rest} if edge > 0 and not rest:
            return edge
        case [int(height), int(width)] if min(height, width) > 0:
            return (height, width)
        case int(edge) if edge > 0 and not isinstance(edge, bool):
            return (edge, edge) if square else edge
    raise ValueError(f"{key} {value!r} is not understood; expected height and width, or shortest_edge, in pixels")


def _without_nulls(value: Any) -> Any:
    """Drop nulls: transformers writes every key that a size can have."""
    return {key: number for key, number in value.items() if number is not None} if isinstance(value, dict) else value


def _interpolation(resample: Any) -> Interpolation:
    if isinstance(resample, int) and not isinstance(resample, bool) and 0 <= resample < len(_PILLOW_FILTERS):
        return _PILLOW_FILTERS[resample]
    numbers = ", ".join(f"{number} {name}" for number, name in enumerate(_PILLOW_FILTERS))
    raise ValueError(f"resample {resample!r} is not one of Pillow's filters, by number: {numbers}")


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"{key} {value!r} is neither true nor false")
    return bool(value)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} {value!r} is not a number")
    return float(value)


def _channels(values: Any, key: str) -> Channels:
    """Read one number per channel, or one for all."""
    if isinstance(values, int | float) and not isinstance(values, bool):
        values = [values] * 3
    if isinstance(values, list | tuple) and len(values) == 3:
        return (_number(values[0], key), _number(values[1], key), _number(values[2], key))
    raise ValueError(f"{key} {values!r} is not a list of three numbers, one for each of red, green and blue")


def _short(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)

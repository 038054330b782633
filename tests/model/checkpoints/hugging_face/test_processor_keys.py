"""Every key of transformers' image processors, as the library lists them: the library's pixels, or a refusal by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from model.checkpoints.blueprint import input_size
from model.preprocessing import from_hugging_face
from tests.support.preprocessing import IMAGE, our_pixels

PROCESSORS: dict[Any, dict[str, Any]] = {
    ViTImageProcessorPil: {"size": {"height": 48, "width": 48}},
    DeiTImageProcessorPil: {"size": {"height": 48, "width": 48}, "crop_size": {"height": 40, "width": 40}},
    BitImageProcessorPil: {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}},
    CLIPImageProcessorPil: {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}},
    SiglipImageProcessorPil: {"size": {"height": 48, "width": 48}},
    BeitImageProcessorPil: {"size": {"height": 48, "width": 48}},
    ConvNextImageProcessorPil: {"size": {"shortest_edge": 40}, "crop_pct": 0.875},
}

FLAGS = [True, False, None, "false", 0]
SIZES = [36, [36, 36], {"height": 36, "width": 36}, {"height": 36, "width": 44}, {"shortest_edge": 36}, {"longest_edge": 36}]
SIZES += [
    {"shortest_edge": 36, "longest_edge": 60},
    {"max_height": 36, "max_width": 36},
    36.5,
    "36",
    None,
    {"height": "36", "width": "36"},
]
STATISTICS: list[Any] = [[0.1, 0.2, 0.3], 0.4, [0.4], None, ["0.1", "0.2", "0.3"], [0.1, 0.2, 0.3, 0.4], "0.5"]

VALUES: dict[str, list[Any]] = {
    "do_convert_rgb": FLAGS,
    "do_resize": FLAGS,
    "do_rescale": FLAGS,
    "do_normalize": FLAGS,
    "do_center_crop": FLAGS,
    "do_pad": FLAGS,
    "do_reduce_labels": FLAGS,
    "default_to_square": FLAGS,
    "disable_grouping": FLAGS,
    "size": SIZES,
    "crop_size": [*SIZES, 60, {"height": 60, "width": 60}],
    "pad_size": [{"height": 70, "width": 70}, None],
    "resample": [0, 1, 2, 3, 4, 5, 6, "bicubic", "3", 2.0, None, True],
    "rescale_factor": [1 / 127.5, 1, 0.01, "0.01", None],
    "image_mean": STATISTICS,
    "image_std": STATISTICS,
    "crop_pct": [0.9, 1, 0.5, 1.25, "0.9", None],
    "data_format": ["channels_first", "channels_last", None],
    "input_data_format": ["channels_first", None],
    "device": ["cpu", None],
    "return_tensors": ["np", None],
    "image_seq_length": [7, None],
    "image_processor_type": ["ImageGPTImageProcessor", "ViTHybridImageProcessor"],
}
"""Values of each key; a key that the library adds is missing here, and fails."""


REFUSED = {"image_processor_type", "pad_size"}
"""Keys that are refused with any other value; all others are answered with some."""


def keys_of(processor: Any) -> list[str]:
    """Return the keys of the library: those it takes and those it writes."""
    return list(dict.fromkeys([*processor.valid_kwargs.__annotations__, *processor(**PROCESSORS[processor]).to_dict()]))


CASES = [(processor, key) for processor in PROCESSORS for key in keys_of(processor)]


def content_of(processor: Any, directory: Path) -> dict[str, Any]:
    processor(**PROCESSORS[processor]).save_pretrained(directory)
    content: dict[str, Any] = json.loads((directory / "preprocessor_config.json").read_text())
    return content


def assert_pixels_are_the_librarys(processor: Any, content: dict[str, Any], key: str, directory: Path) -> bool:
    """Return True if they are, and False for a refusal, which must name the key."""
    try:
        preprocessing = from_hugging_face(content)
        input_size(preprocessing)
    except (ValueError, TypeError) as error:
        assert key in str(error)
        return False
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    theirs = processor.from_pretrained(directory)
    expected = np.asarray(theirs(IMAGE, return_tensors="np")["pixel_values"][0], dtype=float)
    pixels = our_pixels(preprocessing)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 1e-4 * np.abs(expected).max()
    return True


@pytest.mark.parametrize(("processor", "key"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_other_value_is_honoured_or_refused(processor: Any, key: str, tmp_path: Path) -> None:
    content = content_of(processor, tmp_path)
    answered = [assert_pixels_are_the_librarys(processor, content | {key: value}, key, tmp_path) for value in VALUES[key]]
    answered = [yes for yes, value in zip(answered, VALUES[key], strict=True) if value is not None]  # a null says nothing
    assert any(answered) == (key not in REFUSED)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.__name__)
def test_missing_key_is_the_librarys_default(processor: Any, tmp_path: Path) -> None:
    content = content_of(processor, tmp_path)
    for key in content.keys() - {"image_processor_type"}:
        rest = {name: value for name, value in content.items() if name != key}
        assert assert_pixels_are_the_librarys(processor, rest, key, tmp_path)

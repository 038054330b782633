from typing import Any

import pytest

from model.preprocessing import Preprocessing, from_hugging_face, to_hugging_face

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"size": 224}, Preprocessing((224, 224), None, "bilinear", HALF, HALF), id="feature-extractor-of-2021"),
        pytest.param(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3},
            Preprocessing((384, 384), None, "bicubic", HALF, HALF),
            id="vit",
        ),
        pytest.param(
            {
                "image_processor_type": "BitImageProcessorFast",
                "size": {"shortest_edge": 256},
                "crop_size": 224,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
            },
            Preprocessing(256, (224, 224), "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            id="dinov2",
        ),
        pytest.param(
            {"do_resize": False, "do_center_crop": True, "crop_size": 32, "do_normalize": False, "do_rescale": False},
            Preprocessing(None, (32, 32), "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1.0),
            id="steps-switched-off",
        ),
    ],
)
def test_processor_configs_as_transformers(config: dict[str, Any], expected: Preprocessing) -> None:
    assert from_hugging_face(config) == expected


def test_written_preprocessing_is_read_back() -> None:
    preprocessing = Preprocessing(96, (84, 84), "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert from_hugging_face(to_hugging_face(preprocessing)) == preprocessing


def test_describe_preprocessing() -> None:
    preprocessing = Preprocessing(96, (84, 84), "bicubic", (0.485, 0.456, 0.406), HALF)
    assert preprocessing.describe() == (
        "resize shortest edge to 96 (bicubic), crop centre 84 x 84, mean 0.485/0.456/0.406, std 0.5/0.5/0.5"
    )


def test_efficientnets_steps_are_added_up() -> None:
    said = {"size": {"height": 8, "width": 8}, "image_mean": [0.1] * 3, "image_std": [0.5] * 3, "rescale_offset": True}
    how = from_hugging_face({**said, "rescale_factor": 1 / 127.5}, "EfficientNetImageProcessor")
    assert how.mean == pytest.approx((1.1,) * 3)  # ((x / 127.5 - 1) - 0.1) / 0.5 / 0.5
    assert how.std == (0.25,) * 3
    how = from_hugging_face({**said, "include_top": False, "do_normalize": False}, "EfficientNetImageProcessor")
    assert (how.mean, how.std) == ((1.0,) * 3, (1.0,) * 3)


def test_mobilevit_flips_and_normalises_nothing() -> None:
    how = from_hugging_face({"do_normalize": True, "image_mean": [0.5] * 3}, "MobileViTImageProcessor")
    assert (how.mean, how.std, how.bgr) == ((0.0,) * 3, (1.0,) * 3, True)
    assert how.describe().endswith("channels blue, green, red")
    assert not from_hugging_face({"do_flip_channel_order": False}, "MobileViTImageProcessor").bgr
    with pytest.raises(ValueError, match="only a resize"):
        to_hugging_face(how)


@pytest.mark.parametrize(
    ("size", "crop_pct", "resize"),
    [({"shortest_edge": 65}, 0.9, 72), ({"height": 65, "width": 65}, 0.9, 72), ({"shortest_edge": 65}, None, 65)],
)
def test_poolformer_resizes_by_its_crop(size: dict[str, int], crop_pct: float | None, resize: int) -> None:
    how = from_hugging_face({"size": size, "crop_pct": crop_pct}, "PoolFormerImageProcessor")
    assert (how.resize, how.crop) == (resize, (224, 224))


def test_poolformers_crop_is_checked() -> None:
    with pytest.raises(ValueError, match="crop_pct must be greater than 0"):
        from_hugging_face({"crop_pct": 0}, "PoolFormerImageProcessor")

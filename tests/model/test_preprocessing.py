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

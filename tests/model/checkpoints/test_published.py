"""Published data in this project equals that of the libraries."""

from typing import Any

import pytest

from model.checkpoints.published.imagenet import LISTS, class_names
from model.checkpoints.published.timm_weights import published_cfg
from model.checkpoints.published.trained_on import said_by_dataset, said_by_tag
from tests.support.published import lemmas, lists, torchvision_names, weights

from timm import models as timm_models  # isort: skip

ROWS = list(weights())
KEYS = ("num_classes", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


def comparable(cfg: dict[str, Any]) -> dict[str, Any]:
    return {key: list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key] for key in KEYS}


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_pretrained_cfg_is_timms(row: dict[str, Any]) -> None:
    assert published_cfg(row["name"]) == comparable(row)


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_tag_names_the_classes_that_timm_names(row: dict[str, Any]) -> None:
    said = said_by_tag(row["tag"], row["num_classes"])
    assert (said.classes if said else "") == row["classes"]


@pytest.mark.parametrize("architecture", sorted({row["architecture"] for row in ROWS}))
def test_a_bare_name_gets_timms_default(architecture: str) -> None:
    default = timm_models.get_pretrained_cfg(architecture)
    assert default is not None
    assert published_cfg(architecture) == comparable(default.to_dict())


def test_unknown_timm_architecture_is_refused() -> None:
    """Its preprocessing would be a guess."""
    with pytest.raises(ValueError, match=r"no architecture vit_tiny_patch16_96; did you mean vit_tiny_patch16_"):
        published_cfg("vit_tiny_patch16_96")


def test_unknown_tag_is_refused_with_known_ones() -> None:
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm_models.get_pretrained_cfg("vit_tiny_patch16_384.augreg")
    sentence = "timm has no weights vit_tiny_patch16_384.augreg; it has augreg_in21k_ft_in1k; without a tag it is augreg_"
    with pytest.raises(ValueError, match=sentence):
        published_cfg("vit_tiny_patch16_384.augreg")


@pytest.mark.parametrize("classes", LISTS)
def test_class_names_are_timms_in_order(classes: str) -> None:
    names = lemmas()
    assert list(class_names(classes)) == [names[synset] for synset in lists()[classes]]
    assert len(class_names(classes)) == LISTS[classes]


def test_torchvisions_names_are_torchvisions() -> None:
    assert list(class_names("imagenet-1k", "torchvision")) == torchvision_names()


def test_a_cat_is_a_tabby_cat() -> None:
    assert class_names("imagenet-1k")[281] == "tabby, tabby cat"
    assert class_names("imagenet-1k", "torchvision")[281] == "tabby"


@pytest.mark.parametrize("tag", ["", "dino", "in1k_ijepa", "lvd142m", "my_in1k_flowers", "in1k-ish", "augreg_in21k"])
def test_tag_of_other_class_count_has_no_names(tag: str) -> None:
    assert said_by_tag(tag, 1000) is None


@pytest.mark.parametrize(
    ("dataset", "num_classes", "classes"),
    [
        ("imagenet-1k", 1000, "imagenet-1k"),
        ("ImageNet_1K", 1000, "imagenet-1k"),
        ("ILSVRC/imagenet-1k", 1000, "imagenet-1k"),
        ("imagenet", 1000, None),
        ("imagenet-21k", 21_843, "imagenet-21k-goog"),
        ("imagenet-21k", 11_221, "imagenet-21k-miil"),
        ("imagenet-21k-miil", 11_221, "imagenet-21k-miil"),
        ("imagenet-22k", 21_841, "imagenet-22k"),
        ("imagenet-22k", 21_843, None),
        ("imagenet-1k", 999, None),
        ("places365", 1000, None),
    ],
)
def test_data_set_is_found_by_name_and_classes(dataset: str, num_classes: int, classes: str | None) -> None:
    said = said_by_dataset(dataset, num_classes)
    assert (said.classes if said else None) == classes

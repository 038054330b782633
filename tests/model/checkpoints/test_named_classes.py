"""Names of classes are taken from where a checkpoint says that it was trained, and from nowhere else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.labels import name_classes, placeholders
from model.checkpoints.torchvision import read_torchvision_file
from tests.support.torchvision_operators import declare_missing_operators

declare_missing_operators()

import timm  # noqa: E402
import torchvision  # noqa: E402
from timm.data.imagenet_info import ImageNetInfo  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

Change = Callable[[dict[str, Any]], Any]

IMAGENET = tuple(ImageNetInfo().label_descriptions())
NAME = "vit_tiny_patch16_224"
TAG = "augreg_in21k_ft_in1k"
CHANNELS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}

WEIGHTS = [
    pytest.param(f"vit_{size.lower()}", weights, id=f"vit_{size.lower()}.{weights.name}")
    for size in ("B_16", "B_32", "L_16", "L_32", "H_14")
    for weights in getattr(torchvision.models, f"ViT_{size}_Weights")
]


@pytest.fixture(scope="module")
def of_1000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of timm's with the default tag, as a training from scratch on 1,000 classes writes it, too."""
    return save(tmp_path_factory.mktemp("of-1000"), 1000)


@pytest.fixture
def copy(tmp_path: Path, of_1000: Path) -> Path:
    return Path(shutil.copytree(of_1000, tmp_path / "copy"))


def save(directory: Path, num_classes: int, **config: Any) -> Path:
    model = timm.create_model(NAME, num_classes=num_classes)
    save_for_hf(model, str(directory), model_config=config, safe_serialization=True)
    return directory


def change(directory: Path, edit: Change) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


def bare(directory: Path, of_1000: Path, num_classes: int) -> Path:
    tensors = load_file(of_1000 / "model.safetensors")
    tensors |= {"head.weight": torch.zeros(num_classes, 192), "head.bias": torch.zeros(num_classes)}
    save_file(tensors, directory / "bare.safetensors")
    return directory / "bare.safetensors"


def test_tag_of_imagenet_gives_its_names(of_1000: Path) -> None:
    checkpoint = load_checkpoint(of_1000)
    assert checkpoint.labels == IMAGENET
    assert checkpoint.labels_source == f"imagenet-1k, named by timm's tag {TAG}"


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda config: config["pretrained_cfg"].pop("tag"), id="no-tag"),
        pytest.param(lambda config: config["pretrained_cfg"].update(tag="augreg_in21k"), id="tag-of-more-classes"),
        pytest.param(lambda config: config["pretrained_cfg"].update(tag="dino"), id="tag-without-data"),
        pytest.param(lambda config: config["pretrained_cfg"].update(num_classes=21843), id="head-of-its-parent-replaced"),
        pytest.param(lambda config: config["pretrained_cfg"].update(dataset="places365"), id="another-data-set"),
        pytest.param(lambda config: config.update(label_names=list(placeholders(1000))), id="names-that-are-numbers"),
    ],
)
def test_thousand_classes_alone_give_no_names(copy: Path, edit: Change) -> None:
    change(copy, edit)
    checkpoint = load_checkpoint(copy)
    assert checkpoint.labels == placeholders(1000)
    assert checkpoint.labels_source in ("none", "config.json")


def test_data_set_gives_names_without_a_tag(copy: Path) -> None:
    change(copy, lambda config: config["pretrained_cfg"].update(tag=None, dataset="imagenet-1k"))
    checkpoint = load_checkpoint(copy)
    assert checkpoint.labels == IMAGENET
    assert checkpoint.labels_source == "imagenet-1k, named by the dataset imagenet-1k"


def test_fine_tune_with_parents_tag_has_no_names(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path, 11))
    assert checkpoint.labels == placeholders(11)
    assert checkpoint.labels_source == "none"


def test_names_of_the_configuration_win(tmp_path: Path) -> None:
    names = [f"kind {index}" for index in range(1000)]
    checkpoint = load_checkpoint(save(tmp_path, 1000, label_names=names))
    assert checkpoint.labels == tuple(names)
    assert checkpoint.labels_source == "config.json"


def test_labels_txt_wins(copy: Path) -> None:
    (copy / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(1000)))
    checkpoint = load_checkpoint(copy)
    assert checkpoint.labels[281] == "kind 281"
    assert checkpoint.labels_source == "labels.txt"


@pytest.mark.parametrize(
    ("tag", "num_classes", "source", "label_281"),
    [
        ("", 1000, "none", "LABEL_281"),
        (f".{TAG}", 1000, f"imagenet-1k, named by timm's tag {TAG}", "tabby, tabby cat"),
        (f".{TAG}", 300, "none", "LABEL_281"),
        (".augreg_in21k", 1000, "none", "LABEL_281"),
        (".augreg_in21k", 21843, "imagenet-21k-goog, named by timm's tag augreg_in21k", None),
    ],
)
def test_bare_file_has_the_names_of_its_tag(
    tmp_path: Path, of_1000: Path, tag: str, num_classes: int, source: str, label_281: str | None
) -> None:
    checkpoint = load_checkpoint(bare(tmp_path, of_1000, num_classes), f"timm/{NAME}{tag}")
    assert checkpoint.labels_source == source
    assert checkpoint.labels[281] == (label_281 or ImageNetInfo("imagenet-21k-goog").index_to_description(281))


def test_bare_file_of_unknown_tag_is_refused(tmp_path: Path, of_1000: Path) -> None:
    path = bare(tmp_path, of_1000, 11)
    with pytest.raises(CheckpointError, match=f"timm has no weights {NAME}.in1k; it has {TAG}, augreg_in21k; without a tag"):
        load_checkpoint(path, f"timm/{NAME}.in1k")


def torchvision_file(directory: Path, name: str, image_size: int, num_classes: int) -> Path:
    """All that is looked at before the weights are read."""
    channels, patch = CHANNELS[name[:5]], int(name[6:])
    shapes = {
        "conv_proj.weight": (channels, 3, patch, patch),
        "encoder.pos_embedding": (1, (image_size // patch) ** 2 + 1, channels),
        "heads.head.weight": (num_classes, channels),
    }
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, directory / "model.safetensors")
    return directory / "model.safetensors"


@pytest.mark.parametrize(("name", "weights"), WEIGHTS)
def test_torchvision_weights_have_their_preset(tmp_path: Path, name: str, weights: Any) -> None:
    preset = weights.transforms()
    path = torchvision_file(tmp_path, name, preset.crop_size[0], 1000)
    blueprint = name_classes(read_torchvision_file(path, f"{name}.{weights.name}"), tmp_path)
    assert blueprint.labels == tuple(weights.meta["categories"])
    assert blueprint.labels_source == f"imagenet-1k, named by torchvision's weights {weights.name}"
    preprocessing = blueprint.preprocessing
    assert preprocessing.crop == (preset.crop_size[0], preset.crop_size[0])
    assert preprocessing.resize == preset.resize_size[0]
    assert preprocessing.interpolation == preset.interpolation.value
    assert (list(preprocessing.mean), list(preprocessing.std)) == (preset.mean, preset.std)


@pytest.mark.parametrize(("named", "num_classes"), [("", 1000), (".IMAGENET1K_V1", 11)])
def test_torchvisions_file_has_no_names_otherwise(tmp_path: Path, named: str, num_classes: int) -> None:
    path = torchvision_file(tmp_path, "vit_b_16", 224, num_classes)
    blueprint = name_classes(read_torchvision_file(path, f"vit_b_16{named}"), tmp_path)
    assert blueprint.labels == placeholders(num_classes)
    assert blueprint.labels_source == "none"


def test_unknown_torchvision_weights_are_refused(tmp_path: Path) -> None:
    path = torchvision_file(tmp_path, "vit_b_32", 224, 1000)
    with pytest.raises(CheckpointError, match="torchvision has no weights 'IMAGENET1K_V2' of vit_b_32; it has IMAGENET1K_V1"):
        load_checkpoint(path, "torchvision/vit_b_32.IMAGENET1K_V2")


@pytest.mark.parametrize("numbers", [range(1, 8), [*range(6), 9], ["a", *range(1, 7)]], ids=["from-1", "gap", "no-number"])
def test_labels_not_numbered_from_0_are_refused(tmp_path: Path, numbers: Any) -> None:
    names = {str(number): f"n{number}" for number in numbers}
    save(tmp_path, 7, label_names=names)
    with pytest.raises(CheckpointError, match="label_names must give one label for each of 7 classes, numbered from 0"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [None, ["a"], True])
def test_label_that_is_no_text_is_refused(tmp_path: Path, name: Any) -> None:
    save(tmp_path, 3, label_names=["a", name, "c"])
    with pytest.raises(CheckpointError, match=r"label_names gives class 1 the label .* which is no text"):
        load_checkpoint(tmp_path)


def test_architecture_without_its_library_is_told(tmp_path: Path, of_1000: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{NAME}' must begin with timm/ or torchvision/"):
        load_checkpoint(bare(tmp_path, of_1000, 3), NAME)

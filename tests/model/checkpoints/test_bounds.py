"""A configuration may ask for no more than its tensors can fill, and is refused before anything is built."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.checkpoint import CheckpointError, load_backbone, load_checkpoint


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "depth 1000000 is more than any model has; up to 1000 are supported"),
        ({"num_hidden_layers": 1000}, r"layer\.999\.norm1\.weight, but the configuration asks for 1000 blocks"),
        ({"image_size": 10**6}, "image_size 1000000 is more than any model has"),
        ({"image_size": 4096, "patch_size": 1}, "num_tokens 16777217 is more than any model has"),
        ({"hidden_size": 200_000, "num_attention_heads": 1}, "embed_dim 200000 is more than any model has"),
        ({"hidden_size": 65_536}, r"has shape \(.*\), expected"),
        ({"num_attention_heads": 10**6}, "num_heads 1000000 is more than any model has"),
        ({"mlp_ratio": 10**300}, "mlp_dim must be between 1 and 1000000"),
        ({"num_labels": 10**9, "id2label": None}, "number of labels must be between 1 and 1000000, not 1000000000"),
        ({"num_labels": -1, "id2label": None}, "number of labels must be between 1 and 1000000, not -1"),
        ({"num_labels": 10**6, "id2label": None}, r"classifier\.weight has shape .*, expected \(1000000, 64\)"),
        ({"patch_size": 10**4000}, "patch_size must be between 1 and 1000000"),
    ],
)
def test_sizes_without_tensors_are_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_json(copy / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize("registers", [-1, 10**9])
def test_odd_numbers_of_registers_are_refused(copy: Path, registers: int) -> None:
    architectures = ["Dinov2WithRegistersForImageClassification"]
    change_json(copy / "config.json", architectures=architectures, model_type=None, num_register_tokens=registers)
    with pytest.raises(CheckpointError, match="reg_tokens"):
        load_checkpoint(copy)


def test_input_of_a_million_pixels_is_refused(copy: Path) -> None:
    crop = {"height": 10**6, "width": 10**6}
    change_json(copy / "preprocessor_config.json", crop_size=crop, size={"shortest_edge": 10**6})
    with pytest.raises(CheckpointError, match="image_size 1000000 is more than any model has"):
        load_checkpoint(copy)


def test_training_refuses_the_same(copy: Path) -> None:
    change_json(copy / "config.json", num_hidden_layers=1000)
    with pytest.raises(CheckpointError, match="the configuration asks for 1000 blocks"):
        load_backbone(copy, num_classes=3, image_size=28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, r"config\.json cannot be read"),
        (b'{"a": ' * 100_000, r"config\.json cannot be read"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", r"config\.json cannot be read"),
        (b"[]", r"config\.json is not a JSON object"),
        (b"", r"config\.json cannot be read"),
        (b"\xff\xfe{}", r"config\.json cannot be read"),
    ],
    ids=["nested-lists", "nested-objects", "long-number", "list", "empty", "utf-16"],
)
def test_odd_json_is_one_sentence(copy: Path, content: bytes, message: str) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize("model", ["x" * 300, f"{'x' * 150}/{'y' * 300}", "\0", "a/\0", "loop", "file/below"])
def test_path_that_leads_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError):
        load_checkpoint(model)


def test_long_name_of_a_shard_is_one_sentence(copy: Path) -> None:
    os.rename(copy / "model.safetensors", copy / "weights.safetensors")
    index = {"weight_map": {"classifier.weight": "x" * 300 + ".safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        load_checkpoint(copy)


def test_architecture_beside_a_directory(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it is for bare state dicts, and .* has a configuration") as refused:
        load_checkpoint(tiny_checkpoint, "timm/vit_tiny_patch16_224")
    assert refused.value.field == "architecture"

"""labels.txt as people write it, and which labels win."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.labels import placeholders, read_labels
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import TINY_LABELS

TIMM = "timm/vit_tiny_patch16_224"
NAMES = ("cat", "dog", "cow")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of three classes."""
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig(num_classes=3, embed_dim=192, num_heads=3, mlp_dim=768))
    path = tmp_path_factory.mktemp("bare") / "model.safetensors"
    save_file({key: torch.zeros(value.shape) for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cat\ndog\ncow", id="no-last-newline"),
        pytest.param(b"cat\r\ndog\r\ncow\r\n", id="crlf"),
        pytest.param(b"cat\rdog\rcow\r", id="cr"),
        pytest.param(b"\xef\xbb\xbfcat\ndog\ncow\n", id="byte-order-mark"),
        pytest.param(b"cat\ndog\ncow\n\n \r\n", id="blank-lines-at-the-end"),
        pytest.param(b"cat \ndog\t\n  cow\n", id="blanks-around"),
    ],
)
def test_labels_as_people_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path) == NAMES


def test_only_line_ends_part_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat, big\u2028and\u0085small\ndog\x0b\x0cdog\n", encoding="utf-8")
    assert read_labels(tmp_path) == ("cat, big\u2028and\u0085small", "dog\x0b\x0cdog")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32-be"])
def test_labels_of_another_encoding_are_told(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "labels.txt").write_bytes("Käse\nbrød\n".encode(encoding))
    with pytest.raises(CheckpointError, match=r"labels\.txt is not UTF-8 text \((byte|character) \d+\): save it as UTF-8"):
        read_labels(tmp_path)


@pytest.mark.parametrize("content", [b"cat\n\ndog\n", b"\ncat\ndog\n"])
def test_blank_line_among_labels_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"labels\.txt: line \d is blank, where a label should be"):
        read_labels(tmp_path)


@pytest.mark.parametrize("content", [b"cat\ndog\n", b"cat\ndog\ncow\nhen\n", b"", b"\n"])
def test_wrong_number_of_labels_is_told(tmp_path: Path, bare: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").symlink_to(bare)
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"labels\.txt: \d labels do not fit 3 classes|labels\.txt is empty"):
        load_checkpoint(tmp_path / "model.safetensors", TIMM)


def test_directory_of_labels_is_told(tmp_path: Path, bare: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(bare)
    (tmp_path / "labels.txt").mkdir()
    with pytest.raises(CheckpointError, match=r"labels\.txt cannot be read: Is a directory"):
        load_checkpoint(tmp_path / "model.safetensors", TIMM)


def set_labels(directory: Path, id2label: dict[str, str] | None) -> None:
    config = json.loads((directory / "config.json").read_text())
    del config["id2label"], config["label2id"]
    config |= {"num_labels": 10} if id2label is None else {"id2label": id2label}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("given", ["placeholders", "nothing"])
def test_labels_beside_a_config_without_names(copy: Path, given: str) -> None:
    unnamed = {str(index): label for index, label in enumerate(placeholders(10))}
    set_labels(copy, unnamed if given == "placeholders" else None)
    assert load_checkpoint(copy).labels == placeholders(10)
    (copy / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(10)))
    assert load_checkpoint(copy).labels == tuple(f"kind {index}" for index in range(10))
    (copy / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(CheckpointError, match=r"labels\.txt: 2 labels do not fit 10 classes"):
        load_checkpoint(copy)


def test_names_of_the_config_win(copy: Path) -> None:
    (copy / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(10)))
    assert load_checkpoint(copy).labels == TINY_LABELS


def test_label_that_is_no_text_is_told(copy: Path) -> None:
    set_labels(copy, {str(index): "\ud83d" if index == 3 else "cat" for index in range(10)})
    with pytest.raises(CheckpointError, match="label of class 3 is not Unicode text"):
        load_checkpoint(copy)


def test_name_of_any_bytes_can_be_answered(tmp_path: Path, bare: Path) -> None:
    path = tmp_path / os.fsdecode(b"th\xe9.pth")
    torch.save(load_file(bare), path)
    assert load_checkpoint(path, TIMM).name == "th\ufffd"

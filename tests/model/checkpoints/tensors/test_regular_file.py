"""Pipes, devices, directories, links and failing disks in place of a checkpoint's file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.tensors.regular_file import FileError, MissingFile, read_ahead, read_file
from tests.support.checkpoints import write_shards
from tests.support.torchvision_operators import declare_missing_operators

declare_missing_operators()

import timm  # noqa: E402

TIMM = "timm/vit_tiny_patch16_224"


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("replace", [pipe, link_to_pipe, device])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_pipe_in_a_checkpoint_is_refused(copy: Path, name: str, replace: Callable[[Path], None]) -> None:
    replace(copy / name)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is no regular file"):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_pipe_among_shards_is_refused(copy: Path, name: str) -> None:
    (copy / "model.safetensors").unlink()
    write_shards(copy)
    pipe(copy / name)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is no regular file"):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", ["bare.safetensors", "bare.pth", "labels.txt"])
def test_pipe_as_a_bare_file_is_refused(tmp_path: Path, name: str) -> None:
    state = timm.create_model(TIMM.removeprefix("timm/"), num_classes=2).state_dict()
    save_file(state, tmp_path / "bare.safetensors")
    torch.save(state, tmp_path / "bare.pth")
    pipe(tmp_path / name)
    weights = "bare.pth" if name == "bare.pth" else "bare.safetensors"
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is no regular file"):
        load_checkpoint(tmp_path / weights, TIMM)


def test_links_to_regular_files_are_followed(copy: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in copy.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert load_checkpoint(snapshot).parameters == load_checkpoint(copy).parameters


def test_failing_disk_is_one_sentence(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("/proc/self/mem")  # a regular file of which no page can be read
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: Input/output error"):
        load_checkpoint(copy)


def test_loop_of_links_is_one_sentence(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CheckpointError, match="Too many levels of symbolic links"):
        load_checkpoint(copy)


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(FileError, match="it is larger than 4 bytes"):
        read_file(tmp_path / "file", 4)
    with pytest.raises(FileError, match="null byte"):
        read_file(tmp_path / "\0", 5)
    for missing in (tmp_path / "none", tmp_path / "file" / "none"):
        with pytest.raises(MissingFile):
            read_ahead(missing)


def test_huge_config_is_refused(copy: Path) -> None:
    with (copy / "config.json").open("ab") as config:
        config.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=r"config.json cannot be read: it is larger than 33554432 bytes"):
        load_checkpoint(copy)


def test_byte_order_mark_is_not_json(copy: Path) -> None:
    config = copy / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + json.dumps(json.loads(config.read_text())).encode())
    assert load_checkpoint(copy).parameters > 0

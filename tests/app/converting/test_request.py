"""ConversionRequest: its key changes with all that an answer can depend on, and with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.converting import request as module
from app.converting.request import ConversionRequest
from model.checkpoints.files import files_of
from model.checkpoints.location import locate
from tests.support.checkpoints import save_hugging_face_vit
from tests.support.library_models import write_resnet
from tests.support.models import ROOT, write_tiny_checkpoint


def request_of(model: Path, **changes: Any) -> ConversionRequest:
    made = ConversionRequest(locate(model), None, None, "auto", "auto", False, "float32", "float32", 2, False)
    return replace(made, **changes)


def edit(file: Path) -> None:
    """Change one value, and leave the size and the time as they are."""
    times, content = file.stat(), bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_whole(directory: Path) -> Path:
    """Write a directory with every file that a checkpoint can have."""
    write_tiny_checkpoint(directory)
    (directory / "labels.txt").write_text("one\ntwo\n")
    (directory / "processor_config.json").write_text('{"a": 1}')
    return directory


def write_sharded(directory: Path) -> Path:
    save_hugging_face_vit(directory).save_pretrained(directory, max_shard_size="10KB")
    (directory / "model.safetensors").unlink()
    return directory


def write_pickle(directory: Path) -> Path:
    write_tiny_checkpoint(directory)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def write_bare(directory: Path) -> Path:
    write_tiny_checkpoint(directory)
    (directory / "config.json").unlink()
    (directory / "labels.txt").write_text("one\ntwo\n")
    return directory / "model.safetensors"


KINDS = [write_whole, write_sharded, write_pickle, write_bare]


@pytest.mark.parametrize("write", KINDS)
def test_key_changes_with_every_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    request = request_of(write(tmp_path / "model"))
    key = request.key()
    files = files_of(request.location.path)
    assert key is not None and len(files) > 1
    for file in files:
        before = file.read_bytes()
        edit(file)
        assert request.key() != key, file
        file.write_bytes(before)
        assert request.key() == key


def test_key_of_a_copy_is_the_same(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    (copy / "README.md").write_text("which nothing reads")
    assert request_of(copy).key() == request_of(tiny_checkpoint).key()


@pytest.mark.parametrize("name", ["labels.txt", "processor_config.json", "another.json"])
def test_key_changes_with_a_new_file(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    (copy / name).write_text("{}")
    assert request_of(copy).key() != request_of(tiny_checkpoint).key()


def test_key_changes_with_the_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "another")
    assert request_of(copy).key() != request_of(tiny_checkpoint).key()
    link = tmp_path / tiny_checkpoint.name
    link.symlink_to(copy)  # the model is named after the folder itself
    assert request_of(link).key() != request_of(tiny_checkpoint).key()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "timm/vit_tiny_patch16_224"},
        {"image_size": 42},
        {"activation": "sigmoid"},
        {"library": "none"},
        {"features": True},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_key_changes_with_every_setting(tiny_checkpoint: Path, change: dict[str, Any]) -> None:
    assert request_of(tiny_checkpoint, **change).key() != request_of(tiny_checkpoint).key()


def test_key_leaves_out_how_it_is_run(tiny_checkpoint: Path) -> None:
    asked = request_of(tiny_checkpoint)
    assert replace(asked, run_dtype="bfloat16", threads=7, low_priority=True).key() == asked.key()


@pytest.mark.parametrize("package", ["openvino", "timm", "torch", "transformers"])
def test_key_changes_with_a_version(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before = request_of(tiny_checkpoint).key()
    monkeypatch.setattr("app.converting.request.version", lambda name: "0.0.1" if name == package else version(name))
    assert request_of(tiny_checkpoint).key() != before


def test_code_that_reads_models_is_counted() -> None:
    counted = {str(folder.relative_to(ROOT) / file) for folder, file in module._files_of_code()}
    assert {"model/vit.py", "model/checkpoints/published/timm_weights.tsv", "app/engines/int8.py"} <= counted
    assert not any("training" in file or "__pycache__" in file for file in counted)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_unreadable_file_has_no_key(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    request = request_of(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert request.key() is None


def test_request_survives_json(tiny_checkpoint: Path) -> None:
    request = request_of(tiny_checkpoint, image_size=42, architecture=None)
    assert ConversionRequest.of_json(json.loads(json.dumps(request.as_json()))) == request


LOAD = """
import os, sys
from importlib.metadata import version
from pathlib import Path
from tests.support.torchvision_operators import declare_missing_operators
declare_missing_operators()
from model.checkpoints.checkpoint import load_checkpoint
folder, opened = os.path.realpath(sys.argv[1]), set()

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        opened.add(os.path.realpath(os.fsdecode(arguments[0])))

sys.addaudithook(hook)
load_checkpoint(sys.argv[2])
print(*sorted(file for file in opened if Path(file).is_file() and file.startswith(folder + "/")), sep="\\n")
"""


@pytest.mark.parametrize("write", [*KINDS[:3], write_resnet])
def test_every_file_that_is_opened_counts(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").unlink(missing_ok=True)  # which makes no sense, and is read nevertheless
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    opened = {Path(line) for line in ended.stdout.splitlines()}
    assert any(file.suffix in (".safetensors", ".bin") for file in opened)
    assert opened <= {file.resolve() for file in files_of(path)}


def test_files_of_a_bare_state_dict(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert [file.name for file in files_of(tmp_path / "bare.safetensors")] == ["bare.safetensors"]
    (tmp_path / "labels.txt").write_text("one")
    assert [file.name for file in files_of(tmp_path / "bare.safetensors")] == ["labels.txt", "bare.safetensors"]

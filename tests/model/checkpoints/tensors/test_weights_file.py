"""Every kind of file that tensors come in, and every way in which it can be broken."""

import io
import json
import pickle
import subprocess
import zipfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.files import CheckpointError, find_weights
from model.checkpoints.tensors.weights_file import open_weights
from tests.support.checkpoints import TENSORS, write_shards


def assert_complete(path: Path) -> None:
    file = open_weights(path)
    assert file.shapes == {"a": (2, 3), "b": (4,)}
    for key, value in TENSORS.items():
        assert torch.equal(file.read(key), value)


def test_safetensors_and_shards_and_pth_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "whole.safetensors")
    torch.save(TENSORS, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "model": TENSORS}, tmp_path / "wrapped.pth")
    torch.save({f"module.{key}": value for key, value in TENSORS.items()}, tmp_path / "parallel.pt")
    for name in ("whole.safetensors", "plain.pth", "wrapped.pth", "parallel.pt"):
        assert_complete(tmp_path / name)
    assert_complete(write_shards(tmp_path))


def test_directory_gives_safetensors_or_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        find_weights(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert_complete(find_weights(tmp_path))
    assert find_weights(write_shards(tmp_path).parent).name == "model.safetensors.index.json"


def test_shards_that_miss_their_index_are_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    save_file({"c": TENSORS["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"names b, which model-00002-of-00002.safetensors does not have"):
        open_weights(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        open_weights(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no weight_map"):
        open_weights(index)


def test_index_reaches_no_file_outside_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"inside/secret.safetensors is missing"):
        open_weights(index)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_truncated_file_is_told(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cannot be read.*copy or download it again"):
        open_weights(path)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (subprocess.check_call, (["touch", "sprung"],))


def run_advice(error: pytest.ExceptionInfo[CheckpointError]) -> None:
    """Run the Python that a refusal recommends, to the letter, with nothing imported before."""
    exec(str(error.value).partition("run in Python: ")[2], {})


def test_pth_with_code_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": TENSORS, "arguments": Trap()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(\w+\.check_call\).* run any code") as caught:
        open_weights(tmp_path / "model.pth")
    assert not (tmp_path / "sprung").exists()
    run_advice(caught)
    assert (tmp_path / "sprung").exists()  # so the file was what it seemed
    assert_complete(tmp_path / "model-weights.pth")


class Whole(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(value.clone()) for value in TENSORS.values())


@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param(Whole(), "Whole", id="module"),
        pytest.param({"net": Whole(), "epoch": 3}, "Whole", id="module-in-a-dict"),
        pytest.param({"checkpoint": {"model": Whole(), "lr": 0.1}, "best": [0.5]}, "Whole", id="module-in-a-dict-of-a-dict"),
        pytest.param({"net": torch.nn.DataParallel(Whole())}, "DataParallel", id="parallel-module"),
        pytest.param({"state_dict": TENSORS, "best": np.float64(0.5)}, "scalar", id="number-of-numpy"),
        pytest.param({"state_dict": TENSORS, "callbacks": {Whole: {"best": Path("x")}}}, "Whole", id="class-as-a-key"),
        pytest.param(TENSORS | {"epoch": np.int64(3)}, "scalar", id="beside-the-tensors"),
    ],
)
def test_objects_are_refused_with_a_way_out(tmp_path: Path, content: object, name: str) -> None:
    torch.save(content, tmp_path / 'it\'s "mine".pth')
    with pytest.raises(CheckpointError, match=rf"more than tensors \([\w.]+\.{name}\)") as caught:
        open_weights(tmp_path / 'it\'s "mine".pth')
    run_advice(caught)
    assert_complete(tmp_path / 'it\'s "mine"-weights.pth')


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"model": TENSORS, "args": Namespace(output=PosixPath("/runs"))}, id="path"),
        pytest.param(
            {"run": {"model": TENSORS, "optimizer": {"state": {0: {}}}}, "best": np.float64(0.5)}, id="number-of-numpy"
        ),
        pytest.param({"state_dict": TENSORS, "hyper_parameters": defaultdict(list, lr=[0.1])}, id="hyper-parameters"),
    ],
)
def test_way_out_keeps_the_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors \((pathlib|numpy|collections)\.") as caught:
        open_weights(tmp_path / "model.pth")
    run_advice(caught)
    assert_complete(tmp_path / "model-weights.pth")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_tensor_without_one_shape_is_named(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save(TENSORS | {"c": nested}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth is not a state dict: c is a nested tensor"):
        open_weights(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, TENSORS["a"]])
def test_a_pth_that_is_no_state_dict_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"is not a state dict: it (holds a|has no)"):
        open_weights(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "MODEL.PTH", "last.ckpt", "best.pth.tar", "weights"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_content_decides_not_the_name(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "safetensors":
        save_file(TENSORS, tmp_path / name)
    else:
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    assert_complete(tmp_path / name)


@pytest.mark.parametrize("length", [0x80, 0x8B1F])
def test_a_header_may_have_any_length(tmp_path: Path, length: int) -> None:
    """Its lowest byte begins the file, where a pickle has 0x80, and gzip 0x1f 0x8b."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert open_weights(tmp_path / "model.safetensors").shapes == {"a": (1,)}


def test_shards_may_be_what_torch_saved(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    for key, name in index["weight_map"].items():
        torch.save({key: TENSORS[key]}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_complete(find_weights(tmp_path))


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"")
    return content.getvalue()


def scripted() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), content)
    return content.getvalue()


def arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3))
    return content.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.pth", lambda: b"", "is empty"),
        ("model.pth", lambda: b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        ("model.bin", lambda: b"<html lang='en'>", "is a web page"),
        ("model.safetensors", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        ("config.json", lambda: b'{"architectures": ["ViTForImageClassification"]}', "is JSON, not weights"),
        ("model.pth", scripted, "is TorchScript"),
        ("model.npz", arrays, "an archive of NumPy's arrays"),
        ("model.keras", lambda: zipped("model.weights.h5"), "a model of Keras"),
        ("model.zip", lambda: zipped("model.pth"), "a zip archive with model.pth in it"),
        ("model.onnx", lambda: b"\x08\x07\x12\x07pytorch", "a file of ONNX"),
        ("tf_model.h5", lambda: b"\x89HDF\r\n\x1a\n", "is HDF5"),
        ("model.gguf", lambda: b"GGUF\x03\0\0\0", "is GGUF"),
        ("model.pth.gz", lambda: b"\x1f\x8b\x08", "compressed by gzip"),
        ("model.pkl", lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        ("model.pth", lambda: b"what?", "neither safetensors nor"),
    ],
)
def test_another_kind_of_file_is_told(tmp_path: Path, name: str, content: Callable[[], bytes], says: str) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it is .*{says}|{name} cannot be read: it {says}"):
        open_weights(tmp_path / name)

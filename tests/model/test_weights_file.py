"""Every kind of file that tensors come in, and every way in which it can be broken."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.weights_file import CheckpointError, find_weights, open_weights

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


def write_shards(directory: Path) -> Path:
    save_file({"a": TENSORS["a"]}, directory / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"]}, directory / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory / "model.safetensors.index.json"


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


def test_a_directory_gives_its_safetensors_or_their_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        find_weights(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle: save it as safetensors"):
        find_weights(tmp_path)
    assert find_weights(write_shards(tmp_path).parent).name == "model.safetensors.index.json"


def test_shards_that_do_not_fit_their_index_are_told(tmp_path: Path) -> None:
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


def test_an_index_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
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


def test_a_pth_that_holds_code_is_refused_with_the_way_to_convert_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": TENSORS, "arguments": Trap()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"could run any code; .* convert it: safetensors\.torch\.save_file"):
        open_weights(tmp_path / "model.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, TENSORS["a"]])
def test_a_pth_that_is_no_state_dict_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"is not a state dict"):
        open_weights(tmp_path / "model.pth")


def test_another_kind_of_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is not a .safetensors or .pth file"):
        open_weights(tmp_path / "model.onnx")

"""Folders as training leaves them, and folders that are something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from tests.support.checkpoints import assert_same_logits, lightning, save_hugging_face_vit

TRAINERS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in `checkpoint-20`, as the Trainer leaves it."""
    save_hugging_face_vit(tmp_path / "checkpoint-20")
    for name in TRAINERS:
        (tmp_path / "checkpoint-20" / name).write_bytes(b"not a model")
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("{}")
    return tmp_path


def theirs(directory: Path) -> Any:
    return transformers.ViTForImageClassification.from_pretrained(directory).eval()


def test_checkpoint_of_the_trainer_is_served(folder: Path) -> None:
    assert_same_logits(theirs(folder / "checkpoint-20"), folder / "checkpoint-20", None, size=32)


def test_link_to_a_checkpoint_is_served(folder: Path) -> None:
    (folder / "best").symlink_to("checkpoint-20", target_is_directory=True)
    assert_same_logits(theirs(folder / "checkpoint-20"), folder / "best", None, size=32)


def test_folder_named_by_refusal_is_served(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"stands beside a config.json, which says what it is of: name the folder"
    ) as caught:
        load_checkpoint(folder / "checkpoint-20" / "model.safetensors")
    named = str(caught.value).partition("name the folder, ")[2]
    assert_same_logits(theirs(folder / "checkpoint-20"), Path(named), None, size=32)


def test_missing_image_processor_is_copied(folder: Path) -> None:
    moved = shutil.move(folder / "checkpoint-20" / "preprocessor_config.json", folder)
    with pytest.raises(
        CheckpointError, match=r"preprocessor_config.json is missing: copy that of the model that training began"
    ):
        load_checkpoint(folder / "checkpoint-20")
    shutil.copy(moved, folder / "checkpoint-20")
    assert_same_logits(theirs(folder / "checkpoint-20"), folder / "checkpoint-20", None, size=32)


def test_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "best.pth").symlink_to("last.pth")
    with pytest.raises(CheckpointError, match=r"best\.pth is a link to last\.pth, which does not exist"):
        load_checkpoint(tmp_path / "best.pth")


def test_checkpoint_named_by_refusal_is_served(folder: Path) -> None:
    shutil.copytree(folder / "checkpoint-20", folder / "checkpoint-100")
    with pytest.raises(CheckpointError, match="holds no model, but checkpoints of training: name one") as caught:
        load_checkpoint(folder)
    named = str(caught.value).partition("such as ")[2]
    assert named.endswith("checkpoint-100")
    assert_same_logits(theirs(folder / "checkpoint-20"), Path(named), None, size=32)


def test_pickles_of_older_versions_are_served(folder: Path) -> None:
    directory = folder / "checkpoint-20"
    model, state = theirs(directory), load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    assert_same_logits(model, directory, None, size=32)
    (directory / "pytorch_model.bin").unlink()
    shards = {key: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, key in enumerate(state)}
    for name in set(shards.values()):
        torch.save({key: value for key, value in state.items() if shards[key] == name}, directory / name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_same_logits(model, directory, None, size=32)


def test_lightning_file_beside_config_is_served(folder: Path) -> None:
    directory = folder / "checkpoint-20"
    model, state = theirs(directory), load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(lightning(state, "model."), directory / "pytorch_model.bin")
    assert_same_logits(model, directory, None, size=32)


def with_files(*names: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for name in names:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(b"{}")

    return write


def encoder(kind: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        kind_of_model = getattr(transformers, kind)
        kind_of_model(kind_of_model.config_class(**sizes)).save_pretrained(directory)

    return write


def timm_folder(**arguments: Any) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        model = timm.create_model("vit_tiny_patch16_224", depth=1, **arguments)
        timm.models.save_for_hf(model, str(directory), safe_serialization=True)

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (with_files("adapter_config.json", "adapter_model.safetensors"), "holds an adapter"),
        (with_files("adapter_config.json", "config.json", "model.safetensors"), "holds an adapter"),
        (with_files("zero_to_fp32.py", "latest", "config.json"), "holds DeepSpeed's parts of a model"),
        (with_files("global_step20/mp_rank_00_model_states.pt"), "holds DeepSpeed's parts of a model"),
        (with_files("pytorch_model_fsdp_0/__0_0.distcp", "optimizer.bin"), "holds FSDP's parts of a model"),
        (with_files("__0_0.distcp", ".metadata"), "holds FSDP's parts of a model"),
        (with_files("config.json", "tf_model.h5"), "has no model.safetensors, but tf_model.h5, a file of Keras or TensorFlow"),
        (with_files("config.json", "model.onnx"), "but model.onnx, a file of ONNX"),
        (with_files("model-q4.gguf"), "but model-q4.gguf, a file of GGUF"),
        (with_files("config.json", "flax_model.msgpack"), "but flax_model.msgpack, a file of Flax"),
        (with_files("training_args.bin", "best.pth"), r"config.json is missing: if best.pth is a state dict of timm or"),
        (with_files("model.safetensors"), r"config.json is missing: if model.safetensors is a state dict"),
        (with_files("labels.txt"), r"config.json is missing$"),
        (encoder("Data2VecVisionModel"), "Data2VecVisionModel is an encoder without a classifier, and gives no features"),
        (encoder("ViTForMaskedImageModeling"), "ViTForMaskedImageModeling is of another task, not image classification"),
        (timm_folder(num_classes=3, in_chans=1), "model_args.in_chans 1 is not supported"),
    ],
)
def test_what_a_folder_is_instead_is_told(tmp_path: Path, write: Callable[[Path], None], says: str) -> None:
    write(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "model",
    ["./nowhere", "../nowhere", "nowhere", "models/here/nowhere", "/nowhere", "sub/nowhere", "owner/model.PTH", "a/b.onnx"],
)
def test_missing_path_does_not_ask_the_hub(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("model.checkpoints.location.download", lambda model: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=f"^{model} does not exist; give a directory"):
        load_checkpoint(model)


def test_bare_weights_folder_needs_architecture(tmp_path: Path) -> None:
    with_files("best.pth")(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json is missing: if best.pth is a state dict"):
        load_checkpoint(tmp_path, "timm/vit_tiny_patch16_224")

"""State dicts as training scripts save them, and which of several is taken."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV2

from model.checkpoints.files import CheckpointError
from model.checkpoints.tensors.weights_file import open_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
AVERAGE = {key: value + 1 for key, value in TENSORS.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def assert_holds(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = open_weights(path)
    assert file.shapes == {key: tuple(value.shape) for key, value in tensors.items()}
    for key, value in tensors.items():
        assert torch.equal(file.read(key), value), key


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in TENSORS.items()}


def test_timms_saver_beside_its_average(tmp_path: Path) -> None:
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    average: Any = ModelEmaV2(torch.nn.DataParallel(model), decay=0.5)
    torch.nn.init.ones_(average.module.module.head.weight)
    saver: Any = CheckpointSaver(
        model, torch.optim.SGD(model.parameters()), Namespace(model="vit"), average, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=1, metric=0.5)
    assert_holds(tmp_path / "last.pth.tar", load_state_dict(str(tmp_path / "last.pth.tar")))
    assert open_weights(tmp_path / "last.pth.tar").read("head.weight").min() == 1
    assert "the moving average (state_dict_ema)" in str(open_weights(tmp_path / "last.pth.tar").note)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"model": TENSORS, "optimizer": OPTIMIZER, "epoch": 3, "args": Namespace(lr=0.1)}, id="mae"),
        pytest.param({"model": TENSORS, "model_ema": None, "scaler": {"scale": 1.0}}, id="no-average"),
        pytest.param({"model_ema": TENSORS, "model": AVERAGE}, id="deit"),
        pytest.param({"state_dict_ema": TENSORS, "state_dict": AVERAGE, "model_ema": AVERAGE}, id="timm's-order"),
        pytest.param({"state_dict": TENSORS, "model": AVERAGE}, id="timm's-order-without-average"),
        pytest.param({"model": {"state_dict": TENSORS}}, id="nested"),
        pytest.param({"run": {"model": TENSORS, "epoch": 3}, "seed": 1}, id="nested-under-another-name"),
        pytest.param({"model_state_dict": TENSORS, "optimizer_state_dict": OPTIMIZER}, id="pytorch-tutorial"),
        pytest.param({"net": TENSORS, "acc": 0.9, "epoch": 3}, id="another-name"),
        pytest.param({"net": TENSORS, "acc": torch.tensor(0.9), "epoch": 3}, id="beside-a-number-as-a-tensor"),
        pytest.param({**TENSORS, "epoch": 3, "optimizer": OPTIMIZER}, id="beside-the-tensors"),
        pytest.param(prefixed("module."), id="parallel"),
        pytest.param({"model": prefixed("_orig_mod.module.")}, id="compiled-parallel"),
        pytest.param({"model": prefixed("module._orig_mod.module.")}, id="any-order"),
        pytest.param({"model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}}, id="averaged-by-torch"),
        pytest.param({"a._orig_mod.weight": TENSORS["a.weight"], "b": TENSORS["b"]}, id="compiled-in-parts"),
    ],
)
def test_what_training_scripts_save(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    assert_holds(tmp_path / "checkpoint.pth", TENSORS)


def test_wrappers_are_left_out_of_safetensors_too(tmp_path: Path) -> None:
    save_file(prefixed("_orig_mod.module."), tmp_path / "model.safetensors")
    assert_holds(tmp_path / "model.safetensors", TENSORS)


def test_choice_is_noted_if_there_was_one(tmp_path: Path) -> None:
    torch.save({"model_ema": TENSORS}, tmp_path / "average.pth")
    assert open_weights(tmp_path / "average.pth").note is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"student": TENSORS, "teacher": AVERAGE, "epoch": 3}, r"holds several models \(student, teacher\)"),
        ({"a": {"model": TENSORS}, "b": {"model": AVERAGE}}, r"holds several models \(a, b\)"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, r"no names with tensors; it has optimizer, epoch"),
        ({"state_dict": {"epoch": 3}}, r"no names with tensors under state_dict; it has epoch"),
        ({**prefixed("module."), "b": AVERAGE["b"]}, r"module.b and b are both b"),
    ],
)
def test_what_cannot_be_chosen_is_named(tmp_path: Path, content: dict[str, Any], says: str) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=says):
        open_weights(tmp_path / "checkpoint.pth")

"""Names that older versions, wrappers and people with another head give to tensors, against the libraries' own logits."""

import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from model.checkpoints import torchvision as torchvision_models
from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.timm import names as timm_names
from tests.support.checkpoints import State, assert_same_logits, lightning, save_hugging_face_vit
from tests.support.weights import randomise

TIMM, TORCHVISION = "timm/vit_tiny_patch16_224", "torchvision/vit_b_16"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm_names.SIZES, "tiny", (32, 2, 2, 64))
    monkeypatch.setitem(torchvision_models._SIZES, "vit_b_16", (16, 32, 2, 2, 64))


def timm_model(**arguments: Any) -> Any:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    return randomise(timm.create_model("vit_tiny_patch16_224", **sizes | arguments)).eval()


def torchvision_model() -> Any:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 5}
    return randomise(torchvision.models.VisionTransformer(image_size=224, patch_size=16, **sizes)).eval()


@pytest.mark.parametrize("prefix", ["", "model.", "net.", "model.net.", "model._orig_mod.", "module.backbone."])
def test_lightning_checkpoint_matches_its_model(tmp_path: Path, prefix: str) -> None:
    model = timm_model()
    torch.save(lightning(model.state_dict(), prefix), tmp_path / "last.ckpt")
    assert_same_logits(model, tmp_path / "last.ckpt", TIMM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_match_their_model(tmp_path: Path, dtype: torch.dtype) -> None:
    model = timm_model().to(dtype)
    torch.save(model.state_dict(), tmp_path / "model.PTH")
    assert_same_logits(model.float(), tmp_path / "model.PTH", TIMM)


@pytest.mark.parametrize(
    ("attribute", "head"),
    [
        ("heads", nn.Linear(32, 3)),
        ("heads", nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 3))),
        ("heads", nn.Sequential(nn.Linear(32, 3))),
        ("heads.head", nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 3))),
        ("heads.head", nn.Linear(32, 3)),
    ],
)
def test_other_head_of_torchvision_matches_model(tmp_path: Path, attribute: str, head: nn.Module) -> None:
    model = torchvision_model()
    model.set_submodule(attribute, randomise(head))
    torch.save(model.eval().state_dict(), tmp_path / "model.pth")
    assert_same_logits(model, tmp_path / "model.pth", TORCHVISION)


@pytest.mark.parametrize("at", [0, 1])
def test_other_head_of_timm_matches_its_model(tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture) -> None:
    model = timm_model()
    model.head = nn.Sequential(*[nn.Dropout(0.5)] * at, randomise(nn.Linear(32, 3)))
    save_file(model.eval().state_dict(), tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO):
        assert_same_logits(model, tmp_path / "model.safetensors", TIMM)
    assert f"head.{at} is the head; what else was in its Sequential has no tensors, and is taken for dropout" in caplog.text


def test_average_that_is_taken_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    average = timm_model()
    torch.save({"state_dict": timm_model().state_dict(), "state_dict_ema": average.state_dict()}, tmp_path / "model.pth.tar")
    with caplog.at_level(logging.INFO):
        assert_same_logits(average, tmp_path / "model.pth.tar", TIMM)
    assert "model.pth.tar: the weights are the moving average (state_dict_ema), which timm's loader takes too" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("classifier.", "classifier.1."),
        ("", "module."),
        ("", "model."),
        ("vit.", "vit."),
    ],
)
def test_names_in_a_directory_of_hugging_face(tmp_path: Path, pattern: str, written: str) -> None:
    model = save_hugging_face_vit(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {written + key.removeprefix(pattern) if key.startswith(pattern) else key: value for key, value in state.items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    assert_same_logits(model, tmp_path, None, size=32)


def test_names_of_older_versions_of_hugging_face(tmp_path: Path) -> None:
    model = save_hugging_face_vit(tmp_path)
    for key, value in (state := load_file(tmp_path / "model.safetensors")).copy().items():
        if "layernorm" in key:
            state[key.replace(".weight", ".gamma").replace(".bias", ".beta")] = state.pop(key)
            assert value.ndim == 1
    save_file(state, tmp_path / "model.safetensors")
    assert_same_logits(model, tmp_path, None, size=32)


def test_names_of_older_versions_of_torchvision(tmp_path: Path) -> None:
    model = torchvision_model()
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    state = OrderedDict(model.state_dict())
    for new, old in names.items():
        state = OrderedDict((key.replace(new, old), value) for key, value in state.items())
    torch.save(state, tmp_path / "model.pth")
    theirs = torchvision_model()
    theirs.load_state_dict(OrderedDict(state))  # torchvision reads them itself
    assert_same_logits(theirs, tmp_path / "model.pth", TORCHVISION)


def test_names_of_deit_3_before_timm(tmp_path: Path) -> None:
    model = timm_model(init_values=0.1)
    state = {
        key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v for key, v in model.state_dict().items()
    }
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "model.pth")
    model.load_state_dict(checkpoint_filter_fn(state, model, adapt_layer_scale=True))
    assert_same_logits(model, tmp_path / "model.pth", TIMM)


def changed(state: State, **changes: torch.Tensor) -> State:
    return state | {key.replace("__", "."): value for key, value in changes.items()}


def without(state: State, *beginnings: str) -> State:
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


def renamed(state: State, old: str, new: str) -> State:
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: without(s, "head."), "there is no head.weight: all that it has is an encoder's, and a classifier is needed"),
        (lambda s: renamed(s, "head.", "fc."), "there is no head.weight; beside the encoder it has fc.weight, fc.bias"),
        (lambda s: renamed(s, "head.", "head.2."), "beside the encoder it has head.2.weight, head.2.bias"),
        (
            lambda s: changed(renamed(s, "head.", "head.1."), head__0__running_mean=torch.ones(32)),  # as MAE's linear probes
            "beside the encoder it has head.1.weight, head.1.bias, head.0.running_mean",
        ),
        (lambda s: changed(without(s, "head."), mask_token=torch.ones(1)), "there is no head.weight; .* it has mask_token"),
        (lambda s: changed(s, head__0__weight=torch.ones(4, 5)), "head.0.weight with shape"),
        (lambda s: renamed(renamed(s, "", "backbone."), "backbone.head", "head"), "under backbone and beside it head.weight"),
        (lambda s: s | renamed(s, "", "ema."), "several models, with patch_embed.proj.weight and ema.patch_embed.proj.weight"),
        (lambda s: changed(s, patch_embed__proj__weight=torch.ones(32, 1, 16, 16)), "takes images of 1 channels"),
        (lambda s: changed(s, norm__weight=torch.full((32,), float("nan"))), "norm.weight has values that are not finite"),
        (
            lambda s: changed(s, norm__weight=torch.full((32,), 1e300, dtype=torch.float64)),
            "norm.weight has values that are not finite",
        ),
        (lambda s: changed(s, norm__weight=torch.ones(32, dtype=torch.int8)), "norm.weight is of int8, not of floating-point"),
        (lambda s: changed(s, norm__weight=torch.ones(32, dtype=torch.complex64)), "norm.weight is of complex64, not of float"),
        (lambda s: changed(s, head__weight=torch.ones(0, 32)), r"head.weight has shape \(0, 32\), expected that of a Linear"),
        (lambda s: changed(s, head__weight=torch.ones(5)), r"head.weight has shape \(5,\), expected that of a Linear"),
        (lambda s: changed(s, pos_embed=torch.ones(5)), r"pos_embed has shape \(5,\), expected \(1, 197, 32\)"),
        (lambda s: changed(s, reg_token=torch.ones(5)), r"reg_token with shape \(5,\) is not expected"),
        (
            lambda s: changed(s, norm__weight=torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8)),
            "norm.weight is of qint8",
        ),
        (lambda s: changed(s, norm__weight=torch.ones(32).to_sparse()), "norm.weight is sparse"),
        (lambda s: changed(s, norm__weight=torch.ones(32, device="meta")), "norm.weight is meta"),
        (lambda s: changed(s, norm__weight__absmax=torch.ones(2)), "has norm.weight.absmax, as quantized weights do"),
        (lambda s: changed(s, pre_logits__fc__weight=torch.ones(32, 32)), "pre_logits.fc.weight .* is not expected"),
        (
            lambda s: {"a": torch.ones(2)},
            "there is no patch_embed.proj.weight, which every model .*; its names are those of no library .*: it has a",
        ),
    ],
)
def test_fault_of_a_timm_file_is_named(tmp_path: Path, change: Callable[[State], State], says: str) -> None:
    torch.save(change(timm_model().state_dict()), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path / "model.pth", TIMM)


def test_torchvision_head_of_layers_is_named(tmp_path: Path) -> None:
    model = torchvision_model()
    model.heads = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"no heads.head.weight; beside the encoder it has heads.0.weight, heads.0.bias, heads.2"
    ):
        load_checkpoint(tmp_path / "model.pth", TORCHVISION)


def test_way_out_for_timm_file_of_other_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm_names.SIZES, "tiny", (192, 12, 3, 768))  # what the advice builds is as large as the name says
    model = randomise(timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=5)).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"pos_embed is of images of 48 pixels, but vit_tiny_patch16_224 takes 224"
    ) as caught:
        load_checkpoint(tmp_path / "model.pth", TIMM)
    exec(str(caught.value).partition("run in Python: ")[2], {})
    assert_same_logits(model, tmp_path / "model-48", None, size=48)
    assert load_checkpoint(tmp_path / "model-48").preprocessing.mean == (0.5, 0.5, 0.5)  # of the architecture, as in training


def test_torchvision_pos_embed_fault_is_named(tmp_path: Path) -> None:
    torch.save(torchvision_model().state_dict() | {"encoder.pos_embedding": torch.ones(5)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"encoder.pos_embedding is not there, or not of a square"):
        load_checkpoint(tmp_path / "model.pth", TORCHVISION)


def test_tensors_that_share_memory_are_each_read(tmp_path: Path) -> None:
    model = timm_model()
    model.blocks[1].attn.qkv.weight = model.blocks[0].attn.qkv.weight
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert_same_logits(model, tmp_path / "model.pth", TIMM)


def test_bare_torchvision_file_names_the_setting(tmp_path: Path) -> None:
    torch.save(torchvision_model().state_dict(), tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match=r"is a bare state dict: its names are torchvision's: name its architecture"
    ) as caught:
        load_checkpoint(tmp_path / "model.pth")
    assert caught.value.field == "architecture"
    architecture = str(caught.value).partition("such as ")[2]
    assert load_checkpoint(tmp_path / "model.pth", architecture).model.config.num_classes == 5


DINOV2 = {"patch_size": 8, "mlp_ratio": 2}
VIT = {"patch_size": 8, "intermediate_size": 48}
IN_MEMORY = pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("ViTForImageClassification", VIT),
        ("ViTForImageClassification", VIT | {"qkv_bias": False}),
        ("DeiTForImageClassification", VIT),
        ("DeiTForImageClassificationWithTeacher", VIT),
        ("Dinov2ForImageClassification", DINOV2),
        ("Dinov2ForImageClassification", DINOV2 | {"use_swiglu_ffn": True}),
        ("Dinov2WithRegistersForImageClassification", DINOV2),
        ("Dinov2WithRegistersForImageClassification", DINOV2 | {"use_swiglu_ffn": True}),
    ],
)


def in_memory(directory: Path, architecture: str, arguments: dict[str, Any]) -> Any:
    """Write a model's folder without its weights, whose names in `state_dict()` are others than in a file."""
    config = getattr(transformers, f"{architecture.partition('For')[0]}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, num_labels=5, **arguments
    )
    model: Any = randomise(getattr(transformers, architecture)(config)).eval()
    model.save_pretrained(directory)
    assert load_file(directory / "model.safetensors").keys() != model.state_dict().keys()
    (directory / "model.safetensors").unlink()
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@IN_MEMORY
@pytest.mark.parametrize("by_lightning", [False, True])
def test_names_in_memory_of_transformers(
    tmp_path: Path, architecture: str, arguments: dict[str, Any], by_lightning: bool
) -> None:
    model = in_memory(tmp_path, architecture, arguments)
    state = model.state_dict()
    torch.save(lightning(state, "model.") if by_lightning else state, tmp_path / "pytorch_model.bin")
    assert_same_logits(model, tmp_path, None, size=32)


@IN_MEMORY
def test_way_out_for_transformers_memory_names(tmp_path: Path, architecture: str, arguments: dict[str, Any]) -> None:
    model = in_memory(tmp_path / "folder", architecture, arguments)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"are those of transformers: copy it as pytorch_model\.bin into a folder"):
        load_checkpoint(tmp_path / "model.pth")
    shutil.copy(tmp_path / "model.pth", tmp_path / "folder" / "pytorch_model.bin")
    assert_same_logits(model, tmp_path / "folder", None, size=32)


def test_two_tensors_of_one_meaning_are_refused(tmp_path: Path) -> None:
    model = in_memory(tmp_path, "ViTForImageClassification", VIT)
    state = model.state_dict()
    state["vit.encoder.layer.0.attention.q_proj.weight"] = torch.zeros(32, 32)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"vit\.encoder\.layer\.0\.attention\.q_proj\.weight .* is not expected"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("loss", ["criterion.weight", "loss_fn.pos_weight", "train_loss.weight"])
def test_loss_weights_are_left_out(tmp_path: Path, loss: str, caplog: pytest.LogCaptureFixture) -> None:
    model = timm_model()
    content = lightning(model.state_dict(), "model.")
    content["state_dict"][loss] = torch.ones(5)
    torch.save(content, tmp_path / "last.ckpt")
    with caplog.at_level(logging.WARNING):
        assert_same_logits(model, tmp_path / "last.ckpt", TIMM)
    assert f"{loss} is taken for a loss's, and left out" in caplog.text


@pytest.mark.parametrize(("key", "shape"), [("criterion.weight", (5, 32)), ("temperature", (1,)), ("scale.weight", (5,))])
def test_tensors_that_change_answers_are_refused(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    content = lightning(timm_model().state_dict(), "model.")
    content["state_dict"][key] = torch.ones(shape)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=f"under model and beside it {key}: save the state dict"):
        load_checkpoint(tmp_path / "last.ckpt", TIMM)


@pytest.mark.parametrize("name", torchvision_models._PRESETS)
def test_default_weights_are_torchvisions_own(name: str) -> None:
    assert next(iter(torchvision_models._PRESETS[name])) == torchvision.models.get_model_weights(name)["DEFAULT"].name


def test_default_names_torchvisions_weights(tmp_path: Path) -> None:
    model = torchvision_model()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert_same_logits(model, tmp_path / "model.pth", f"{TORCHVISION}.DEFAULT")


@pytest.mark.parametrize("architecture", [None, TIMM])
def test_bare_transformers_file_has_a_way_out(tmp_path: Path, architecture: str | None) -> None:
    model = save_hugging_face_vit(tmp_path / "folder")
    bare = (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"are those of transformers: copy it as pytorch_model\.bin into a folder"):
        load_checkpoint(bare, architecture)
    shutil.copy(bare, tmp_path / "folder" / "pytorch_model.bin")
    assert_same_logits(model, tmp_path / "folder", None, size=32)


def test_other_file_is_not_called_a_state_dict(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be read: it is a web page"):
        load_checkpoint(tmp_path / "model.pth")

"""Every key of timm's `model_args` and `pretrained_cfg`, as the library lists them: its answers, or a refusal by name."""

import dataclasses
import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model.checkpoints.blueprint import input_size
from model.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from tests.support.preprocessing import IMAGE, our_pixels
from tests.support.weights import randomise

import timm  # isort: skip
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import PretrainedCfg, save_for_hf
from timm.models.vision_transformer import VisionTransformer

ARCHITECTURE = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

ARGUMENTS: dict[str, list[Any]] = {
    "img_size": [48, [32, 32], "32", 32.0, None, [32, 40]],
    "patch_size": [16, [8, 8], "8"],
    "in_chans": [1, 3, "3"],
    "num_classes": [7, "5"],
    "global_pool": ["avg", "token", "avgmax", "max", "map", "", None, "prr"],
    "embed_dim": [64, "32"],
    "depth": [3, "2", 2.0],
    "num_heads": [8, 2, "4", None],
    "mlp_ratio": [2, 2.5, "4", None],
    "qkv_bias": [False, "false"],
    "qk_norm": [True, False],
    "scale_attn_norm": [True, False],
    "scale_mlp_norm": [True, False],
    "proj_bias": [False, True],
    "init_values": [0.1, None],
    "class_token": [False, True],
    "pos_embed": ["none", "learn", ""],
    "no_embed_class": [True, False],
    "reg_tokens": [2, 0, "2"],
    "pre_norm": [True, False],
    "final_norm": [False, True],
    "fc_norm": [True, False, None],
    "pool_include_prefix": [True, False],
    "dynamic_img_size": [True, False, "yes"],
    "dynamic_img_pad": [True, False],
    "drop_rate": [0.5],
    "pos_drop_rate": [0.5],
    "patch_drop_rate": [0.5],
    "proj_drop_rate": [0.5],
    "attn_drop_rate": [0.5],
    "drop_path_rate": [0.5],
    "weight_init": ["skip"],
    "fix_init": [True],
    "embed_layer": ["PatchEmbed"],
    "embed_norm_layer": ["layernorm", None],
    "norm_layer": ["layernorm", "rmsnorm", None],
    "act_layer": ["relu", "quick_gelu", "gelu_tanh", "swish", "GELU", "mish", None],
    "block_fn": ["Block"],
    "mlp_layer": ["Mlp"],
    "attn_layer": ["", "attn", "diff"],
    "device": ["cpu"],
    "dtype": ["float32"],
}
"""Values of each argument; one that timm adds is missing here, and fails."""

PRETRAINED: dict[str, list[Any]] = {
    "input_size": [[3, 32, 32], [3, 48, 48], [3, 32, 40], [1, 32, 32], [32, 32], "32", None],
    "fixed_input_size": [False, True, "true"],
    "interpolation": ["bilinear", "nearest", "lanczos", "box", "hamming", "random", "", 3, None],
    "crop_pct": [1.0, 0.5, 1.25, "0.9", 0, None, float("nan")],
    "crop_mode": ["center", "squash", "border", "other", None],
    "mean": [[0.1, 0.2, 0.3], [0.5], None, "0.5", [], ["0.1", "0.2", "0.3"]],
    "std": [[0.1, 0.2, 0.3], [0.5], None, "0.5", [0, 1, 1]],
    "num_classes": [5, 7, None],
    "label_offset": [1, 0],
    "label_names": [["a", "b", "c", "d", "e"], ["a"]],
    "label_descriptions": [{"a": "b"}],
    "test_input_size": [[3, 64, 64]],
    "test_crop_pct": [0.5],
    "min_input_size": [[3, 8, 8]],
    "pool_size": [[2, 2]],
    "test_pool_size": [[2, 2]],
    "first_conv": ["patch_embed.proj", "stem"],
    "classifier": ["head", ["head", "head_dist"]],
    "custom_load": [True],
    "paper_ids": [["arXiv:1"]],
    "notes": [["x"]],
    "state_dict": [{}],
    "dropout": [0.5],
    "scale": [2],
}
TEXTS = (
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "architecture",
    "tag",
    "license",
    "description",
    "origin_url",
    "paper_name",
)

REFUSED = {"embed_layer", "embed_norm_layer", "block_fn", "mlp_layer", "attn_layer", "device", "dtype", "dropout", "scale"}
"""Arguments that are refused with any value; all others are answered with some."""

NAMES = {
    "num_classes": "head",
    "embed_dim": "shape",
    "depth": "blocks",
    "mlp_ratio": "shape",
    "patch_size": "shape",
    "img_size": "pos_embed",
}
NAMES |= {"in_chans": "channels"}
"""Where the tensors refuse it."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("timm")
    save(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(saved, tmp_path / "model")


def save(directory: Path, **arguments: Any) -> None:
    model = timm.create_model(ARCHITECTURE, **{"num_classes": 5, **SMALL, **arguments})
    save_for_hf(randomise(model), str(directory), safe_serialization=True)


def edit(directory: Path, part: str, **changes: Any) -> None:
    file = directory / "config.json"
    content = json.loads(file.read_text())
    content[part] = content.get(part, {}) | changes
    file.write_text(json.dumps(content))


def our_logits(ours: Checkpoint) -> torch.Tensor:
    pixels = torch.from_numpy(our_pixels(ours.preprocessing)).float()
    assert pixels.shape[1:] == (input_size(ours.preprocessing),) * 2
    with torch.no_grad():
        return ours.model(pixels[None])


def timm_logits(directory: Path) -> torch.Tensor:
    """Return the logits of timm for a directory."""
    model: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        logits: torch.Tensor = model(transform(IMAGE)[None])
    return logits


def assert_answered_as_timm_does(directory: Path, *names: str) -> bool:
    """Return True if it is, and False for a refusal, which must say one of the names."""
    try:
        ours = load_checkpoint(directory)
    except CheckpointError as error:
        assert any(name in str(error) for name in names)
        return False
    expected = timm_logits(directory)
    assert expected.abs().max() > 0.05
    assert (our_logits(ours) - expected).abs().max() <= 1e-4 * expected.abs().max()
    return True


@pytest.mark.parametrize("key", list(inspect.signature(VisionTransformer).parameters))
def test_model_arg_is_honoured_or_refused(key: str, saved: Path, tmp_path: Path) -> None:
    answered = []
    for index, value in enumerate(ARGUMENTS[key]):
        directory = shutil.copytree(saved, tmp_path / str(index))
        edit(directory, "model_args", **{key: value})
        answered.append(assert_answered_as_timm_does(directory, key, NAMES.get(key, key)))
    answered = [yes for yes, value in zip(answered, ARGUMENTS[key], strict=True) if value is not None]  # a null says nothing
    try:
        save(tmp_path / "made", **{key: ARGUMENTS[key][0]})
    except Exception:  # timm makes no such model
        pass
    else:
        written = key in json.loads((tmp_path / "made" / "config.json").read_text())["model_args"]
        answered.append(assert_answered_as_timm_does(tmp_path / "made", key, NAMES.get(key, key)) and written)
    assert any(answered) == (key not in REFUSED)


@pytest.mark.parametrize("key", [*(field.name for field in dataclasses.fields(PretrainedCfg)), "dropout", "scale"])
def test_pretrained_key_is_honoured_or_refused(key: str, copy: Path) -> None:
    answered = []
    for value in ["elsewhere"] if key in TEXTS else PRETRAINED[key]:
        edit(copy, "pretrained_cfg", **{key: value})
        answered.append(assert_answered_as_timm_does(copy, key))
    assert any(answered) == (key not in REFUSED)


@pytest.mark.parametrize("key", ["input_size", "fixed_input_size", "crop_pct", "interpolation", "mean", "std", "num_classes"])
def test_missing_pretrained_cfg_key_is_default(key: str, copy: Path) -> None:
    """Check the library's default, not what timm publishes for the architecture's name."""
    file = copy / "config.json"
    content = json.loads(file.read_text())
    content["pretrained_cfg"].pop(key)
    file.write_text(json.dumps(content))
    assert assert_answered_as_timm_does(copy, key) or key == "input_size"


@pytest.mark.parametrize("labels", ["labels", "label_names"])
def test_flat_config_is_read_as_timm_does(copy: Path, labels: str) -> None:
    edit(
        copy,
        "pretrained_cfg",
        mean=[0.1, 0.2, 0.3],
        std=[0.4] * 3,
        crop_pct=0.7,
        interpolation="bilinear",
        input_size=[3, 224, 224],
    )
    names = ["a", "b", "c", "d", "e"]
    pretrained = json.loads((copy / "config.json").read_text())["pretrained_cfg"]
    model: Any = randomise(timm.create_model(ARCHITECTURE, num_classes=5))
    save_for_hf(model, str(copy), safe_serialization=True)
    flat = pretrained | {"architecture": ARCHITECTURE, "num_classes": 5, "num_features": 192, labels: names}
    (copy / "config.json").write_text(json.dumps(flat))
    assert assert_answered_as_timm_does(copy)
    assert load_checkpoint(copy).labels == ("a", "b", "c", "d", "e")
    (copy / "config.json").write_text(json.dumps(flat | {"model_args": {"num_heads": 6}, "sharpen": 2}))
    with pytest.raises(CheckpointError, match=r"config.json: sharpen 2 is not known here"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_pool": "avg", "model_args": SMALL}, "global_pool is 'avg', but timm reads only that in model_args"),
        ({"model_type": "vit"}, "model_type 'vit' is not supported; supported is 'timm_wrapper'"),
        ({"architectures": ["TimmWrapperModel"]}, "architectures .* is not supported; supported is .'TimmWrapperForImage"),
        ({"pretrained_cfg": None}, "pretrained_cfg None is not an object"),
        ({"model_args": [1]}, r"model_args \[1\] is not an object"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported: quantized"),
        ({"num_classes": "5"}, "num_classes '5' is not a whole number"),
        ({"pretrained_cfg": {"num_classes": "5"}}, "num_classes '5' is not a whole number"),
        ({"num_heads": 2}, "num_heads 2 is not known here"),
        ({"model_args": {**SMALL, "class_token": False}}, "model_args.class_token is False, but the tensors are those of True"),
        ({"model_args": {**SMALL, "reg_tokens": 3}}, "model_args.reg_tokens is 3, but the tensors are those of 0"),
        ({"model_args": {**SMALL, "num_classes": 7}}, "model_args.num_classes is 7, but the weights have num_classes 5"),
        ({"model_args": {**SMALL, "init_values": 0.1}}, "model_args.init_values is 0.1, but the tensors have no LayerScale"),
        ({"model_args": {**SMALL, "mlp_layer": "SwiGLU"}}, "model_args.mlp_layer 'SwiGLU' is not known here"),
    ],
)
def test_what_would_be_another_model_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    file = copy / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


def test_wrapper_without_pretrained_is_refused(tmp_path: Path) -> None:
    """Read what transformers writes of a model made from an architecture's name; it has no image processor for it either."""
    said: dict[str, Any] = {"num_labels": 5}
    config = transformers.TimmWrapperConfig(architecture=ARCHITECTURE, model_args=SMALL, **said)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json: pretrained_cfg is missing, which says how images are prepared"):
        load_checkpoint(tmp_path)
    edit(tmp_path, "pretrained_cfg", input_size=[3, 32, 32])
    assert load_checkpoint(tmp_path).preprocessing.output_size == (32, 32)


def test_registers_and_mean_have_own_norm(tmp_path: Path) -> None:
    model: Any = timm.create_model("vit_little_patch16_reg4_gap_256", num_classes=5, global_pool="avg", depth=1, img_size=32)
    save_for_hf(randomise(model), str(tmp_path), safe_serialization=True)
    assert assert_answered_as_timm_does(tmp_path)

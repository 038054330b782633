"""Loading, against transformers' own models, and every way in which a checkpoint can be wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Dinov2ForImageClassification, ViTForImageClassification

from model.checkpoints.checkpoint import CheckpointError, load_backbone, load_checkpoint, save_checkpoint
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import TINY_DINOV2, TINY_LABELS, TINY_PREPROCESSING, tiny_model

transformers.utils.logging.disable_progress_bar()

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 7,
    "hidden_act": "gelu",
}
VIT_PREPROCESSING = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
DINOV2_PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 28, "width": 28},
}


def save_random(model: Any, directory: Path, preprocessing: dict[str, Any]) -> Any:
    """Give a transformers model weights that matter, and save it the way its users do."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def vit(directory: Path, **changes: Any) -> Any:
    config = transformers.ViTConfig(**{**COMMON, "intermediate_size": 48, "image_size": 32, "patch_size": 8, **changes})
    return save_random(ViTForImageClassification(config), directory, VIT_PREPROCESSING)


def dinov2(directory: Path, **changes: Any) -> Any:
    config = transformers.Dinov2Config(**{**COMMON, "mlp_ratio": 2, "image_size": 28, "patch_size": 7, **changes})
    return save_random(Dinov2ForImageClassification(config), directory, DINOV2_PREPROCESSING)


@pytest.mark.parametrize(
    ("write", "changes", "size"),
    [
        pytest.param(vit, {}, 32, id="vit"),
        pytest.param(vit, {"qkv_bias": False}, 32, id="vit-without-qkv-bias"),
        pytest.param(vit, {"layer_norm_eps": 1e-2}, 32, id="vit-with-another-eps"),
        pytest.param(dinov2, {}, 28, id="dinov2"),
        pytest.param(dinov2, {"image_size": 49}, 28, id="dinov2-at-another-resolution"),
    ],
)
def test_logits_equal_those_of_transformers(
    tmp_path: Path, write: Callable[..., Any], changes: dict[str, Any], size: int
) -> None:
    reference = write(tmp_path, **changes)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))

    loaded = load_checkpoint(tmp_path)

    with torch.no_grad():
        expected, logits = reference(images).logits, loaded.model(images)
    assert logits.shape == (3, 7)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "mine", model, TINY_PREPROCESSING, TINY_LABELS, torch.float32)

    loaded = load_checkpoint(tmp_path / "mine")

    assert (loaded.name, loaded.labels, loaded.preprocessing) == ("mine", TINY_LABELS, TINY_PREPROCESSING)
    assert loaded.model.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key


@pytest.mark.parametrize(
    "changes", [{"swiglu": True, "mlp_dim": 88, "activation": "silu"}, {"mlp_dim": 80}], ids=["swiglu", "ratio"]
)
def test_model_of_other_mlp_loads_after_saving(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = VisionTransformer(replace(TINY_DINOV2, **changes)).eval()
    save_checkpoint(tmp_path, model, TINY_PREPROCESSING, TINY_LABELS, torch.float32)
    loaded, images = load_checkpoint(tmp_path).model, torch.randn(2, 3, 28, 28)
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_training_starts_from_dinov2_only(tmp_path: Path) -> None:
    vit(tmp_path)
    with pytest.raises(CheckpointError, match=r"training starts from Dinov2Model or .*, not from ViTForImageClassification"):
        load_backbone(tmp_path, num_classes=3, image_size=32)


def test_transformers_loads_what_is_saved_here(tiny_checkpoint: Path) -> None:
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tiny_checkpoint)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(tiny_model()(images), theirs.eval()(images).logits, rtol=0, atol=1e-4)
    assert theirs.config.id2label[3] == "class 3"


def test_half_precision_is_served_as_float32(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_model(), TINY_PREPROCESSING, TINY_LABELS, torch.float16)
    assert load_file(tmp_path / "model.safetensors")["classifier.weight"].dtype == torch.float16
    assert {value.dtype for value in load_checkpoint(tmp_path).model.state_dict().values()} == {torch.float32}


def test_backbone_gets_a_new_head(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = load_backbone(tiny_checkpoint, num_classes=3, image_size=56)
    assert model(torch.zeros(1, 3, 56, 56)).shape == (1, 3)
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(model.state_dict()[key], tiny_model().state_dict()[key])


def test_encoder_without_head_is_a_backbone(tmp_path: Path) -> None:
    encoder: Any = transformers.Dinov2Model(
        transformers.Dinov2Config(**{**COMMON, "mlp_ratio": 2, "image_size": 28, "patch_size": 7})
    )
    encoder.eval().save_pretrained(tmp_path)
    model, images = load_backbone(tmp_path, num_classes=3, image_size=28).eval(), torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = encoder(images).last_hidden_state
        torch.testing.assert_close(model.forward_features(images), expected, rtol=0, atol=1e-5)


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


QUERY = "dinov2.encoder.layer.1.attention.attention.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda w: w.pop(QUERY), rf"{QUERY} is missing, expected with shape \(32, 32\)", id="missing"),
        pytest.param(
            lambda w: w.update({QUERY: torch.zeros(32, 16)}), rf"{QUERY} has shape \(32, 16\), expected \(32, 32\)", id="shape"
        ),
        pytest.param(lambda w: w.update(extra=torch.zeros(3)), r"extra with shape \(3,\) is not expected", id="unknown"),
        pytest.param(lambda w: w.clear(), r"and 39 more", id="nothing-there"),
    ],
)
def test_wrong_weights_are_named(copy: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> None:
    change_weights(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"architectures": ["BertModel"]}, "architecture 'BertModel' is not supported; supported are ViT"),
        ("config.json", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ("config.json", {"num_attention_heads": 5}, "embed_dim 32 is not a multiple of num_heads 5"),
        ("config.json", {"patch_size": "7"}, "patch_size '7' is not one number"),
        ("config.json", {"hidden_size": None}, "hidden_size None is not a whole number"),
        ("config.json", {"hidden_size": 10**12}, "embed_dim must be between 1 and 1000000"),
        ("config.json", {"hidden_size": float("inf")}, "hidden_size inf is not a whole number"),
        ("config.json", {"num_hidden_layers": 2.7}, "num_hidden_layers 2.7 is not a whole number"),
        ("config.json", {"mlp_ratio": "2"}, "mlp_ratio '2' is not a number"),
        ("config.json", {"layer_norm_eps": None}, "layer_norm_eps None is not a number"),
        ("config.json", {"architectures": [["x"]]}, "is not supported; supported are"),
        ("config.json", {"id2label": {"a": "b"}}, "id2label must give one label for each class"),
        ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "image_std .* must be greater than 0"),
        ("preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor must be greater than 0"),
        ("preprocessor_config.json", {"image_mean": [10**400, 0, 0]}, "too large"),
        (
            "preprocessor_config.json",
            {"crop_size": 3},
            "image_size 3 is smaller than patch_size 7",
        ),
        ("config.json", {"num_channels": 1}, "num_channels is 1"),
        ("config.json", {"qkv_bias": "false"}, "qkv_bias 'false' is neither true nor false"),
        ("config.json", {"model_type": "vit"}, "model_type 'vit' does not fit the architecture, whose type is 'dinov2'"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported: quantized"),
        ("config.json", {"auto_map": {"AutoModel": "a.B"}}, "auto_map .* asks for code that comes with the model"),
        ("config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads {'0': .1.} is not supported: heads that were cut away"),
        ("config.json", {"is_decoder": True}, "is_decoder True is not supported; supported is False"),
        ("config.json", {"is_decoder": 0}, "is_decoder 0 is not supported; supported is False"),
        ("config.json", {"rope_theta": 100}, "rope_theta 100 is not known here, and may change what the model answers; remove"),
        ("config.json", {"rope_theta": "x" * 99}, "rope_theta 'x{79}[.]{3} is not known"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad True is not supported"),
        ("preprocessor_config.json", {"sharpen": 2}, "sharpen 2 is not known here"),
        ("preprocessor_config.json", {"do_resize": "false"}, "do_resize 'false' is neither true nor false"),
        ("preprocessor_config.json", {"resample": "bicubic"}, "resample 'bicubic' is not one of Pillow's filters.* 3 bicubic"),
        ("preprocessor_config.json", {"rescale_factor": "0.5"}, "rescale_factor '0.5' is not a number"),
        ("preprocessor_config.json", {"image_mean": [float("nan"), 0, 0]}, "image_mean nan is not a number"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ConvNextImageProcessor", "crop_size": None, "do_center_crop": True},
            "do_center_crop True is not supported",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0, "do_center_crop": False},
            "crop_pct must be greater than 0, not 0",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}, "do_center_crop": False},
            "size of a ConvNextImageProcessor must be a shortest_edge",
        ),
        ("config.json", {"id2label": {"1": "one"}}, "id2label must give one label for each class"),
        ("preprocessor_config.json", {"image_processor_type": "PerceiverImageProcessor"}, "'PerceiverImageProcessor' is not"),
        ("preprocessor_config.json", {"size": {"longest_edge": 9}}, "size {'longest_edge': 9} is not understood"),
        ("preprocessor_config.json", {"crop_size": {"height": 28, "width": 14}}, "must end in a square"),
        ("preprocessor_config.json", {"resample": 17}, "resample 17 is not one of Pillow's filters"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean .* is not a list of three numbers"),
    ],
)
def test_wrong_values_are_named_with_their_file(copy: Path, file: str, changes: dict[str, Any], message: str) -> None:
    change_json(copy / file, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(copy)
    assert file in str(caught.value) or str(copy) in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files_are_named(copy: Path, file: str) -> None:
    (copy / file).write_bytes(b"\x80not this")
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        load_checkpoint(copy)
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        load_checkpoint(copy)


def test_a_missing_value_is_that_of_the_library(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["hidden_size"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"does not fit the architecture: .* expected \(1, 1, 768\)"):
        load_checkpoint(copy)


def test_processor_config_comes_first(copy: Path) -> None:
    processor = json.loads((copy / "preprocessor_config.json").read_text())
    change_json(copy / "preprocessor_config.json", do_rescale=False)
    (copy / "processor_config.json").write_text(json.dumps({"processor_class": "Any"}))
    assert load_checkpoint(copy).preprocessing.scale == 1
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    assert load_checkpoint(copy).preprocessing.scale == 1 / 255
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": processor | {"sharpen": 2}}))
    with pytest.raises(CheckpointError, match=r"processor_config.json: sharpen 2 is not known here"):
        load_checkpoint(copy)


def test_unnamed_processor_is_the_architectures(copy: Path) -> None:
    content = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({"size": content["size"], "crop_size": content["crop_size"]}))
    assert load_checkpoint(copy).preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)


def test_vit_of_another_image_size_is_refused(tmp_path: Path) -> None:
    vit(tmp_path)
    change_json(tmp_path / "preprocessor_config.json", size={"height": 64, "width": 64})
    with pytest.raises(CheckpointError, match="makes images of 64 pixels, but the model takes 32"):
        load_checkpoint(tmp_path)


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_never_opened(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: it is a pickle that torch.save did not write"):
        load_checkpoint(copy)
    assert not (copy / "sprung").exists()


def test_a_place_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give a directory, a file or a hub id"):
        load_checkpoint(tmp_path / "nowhere")


def test_unreadable_file_is_not_called_missing(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()  # to root, who reads everything, the nearest thing
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        load_checkpoint(copy)


def test_what_is_saved_can_be_read_by_others(tiny_checkpoint: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in tiny_checkpoint.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_a_model_in_shards_is_the_same_model(tmp_path: Path) -> None:
    reference = dinov2(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(tmp_path / "whole" / "preprocessor_config.json", tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole, sharded = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "sharded")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(sharded.model.state_dict()[key], value), key


def bare_file(directory: Path) -> Path:
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig(num_classes=3, embed_dim=192, num_heads=3, mlp_dim=768))
    weights = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    save_file(weights, directory / "bare.safetensors")
    return directory / "bare.safetensors"


def test_a_bare_file_must_be_told_what_it_is_of(tmp_path: Path) -> None:
    path = bare_file(tmp_path)
    with pytest.raises(CheckpointError, match="is a bare state dict: its names are timm's: name its architecture"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.bias has shape \(192,\), expected \(384,\)"):
        load_checkpoint(path, "timm/vit_small_patch16_224")
    with pytest.raises(CheckpointError, match=r"there is no conv_proj.weight, which .*; its names are timm's"):
        load_checkpoint(path, "torchvision/vit_b_16")


def test_labels_of_a_bare_file_stand_beside_it(tmp_path: Path) -> None:
    path = bare_file(tmp_path)
    assert load_checkpoint(path, "timm/vit_tiny_patch16_224").labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    (tmp_path / "labels.txt").write_text("cat\ndog\ncow\n")
    assert load_checkpoint(path, "timm/vit_tiny_patch16_224").labels == ("cat", "dog", "cow")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(CheckpointError, match="2 labels do not fit 3 classes"):
        load_checkpoint(path, "timm/vit_tiny_patch16_224")

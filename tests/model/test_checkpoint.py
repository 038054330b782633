"""Loading, against transformers' own models, and every way in which a checkpoint can be wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Dinov2ForImageClassification, ViTForImageClassification

from model.checkpoint import CheckpointError, load_backbone, load_checkpoint, save_checkpoint
from tests.support import TINY_LABELS, TINY_PREPROCESSING, tiny_model

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


def test_a_backbone_gets_a_new_head_and_a_position_embedding_that_fits(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = load_backbone(tiny_checkpoint, num_classes=3, image_size=56)
    assert model(torch.zeros(1, 3, 56, 56)).shape == (1, 3)
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(model.state_dict()[key], tiny_model().state_dict()[key])


def test_an_encoder_without_a_head_is_a_backbone_too(tmp_path: Path) -> None:
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
        ("config.json", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("config.json", {"num_attention_heads": 5}, "embed_dim 32 is not a multiple of num_heads 5"),
        ("config.json", {"patch_size": "7"}, "patch_size '7' is not one number"),
        ("config.json", {"num_channels": 1}, "num_channels is 1"),
        ("config.json", {"id2label": {"1": "one"}}, "id2label must give one label for each class"),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' is not supp"),
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
    assert file in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files_are_named(copy: Path, file: str) -> None:
    (copy / file).write_bytes(b"\x80not this")
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        load_checkpoint(copy)
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        load_checkpoint(copy)


def test_a_missing_value_is_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["hidden_size"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: 'hidden_size' is missing"):
        load_checkpoint(copy)


def test_a_vit_whose_pictures_have_another_size_is_refused(tmp_path: Path) -> None:
    vit(tmp_path)
    change_json(tmp_path / "preprocessor_config.json", size={"height": 64, "width": 64})
    with pytest.raises(CheckpointError, match="makes pictures of 64 pixels, but the model takes 32"):
        load_checkpoint(tmp_path)


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_never_opened(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(copy)
    assert not (copy / "sprung").exists()


def test_a_place_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory with a checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_file_that_may_not_be_read_is_not_called_missing(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()  # to root, who reads everything, the nearest thing
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        load_checkpoint(copy)


def test_what_is_saved_can_be_read_by_others(tiny_checkpoint: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in tiny_checkpoint.iterdir()}
    assert len(set(modes.values())) == 1, modes

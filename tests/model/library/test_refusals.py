"""Models that no library is asked to run, each refused by one sentence."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.library import installed
from tests.support.library_models import edit_json, edit_weights, write_resnet, write_swin

import timm  # isort: skip


def refusal(path: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, *arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name in packages else find_spec(name))


def test_missing_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "transformers")
    assert refusal(write_swin(tmp_path)).endswith(
        "SwinForImageClassification is not one of vit-serve's own models (ViT, DeiT, DINOv2, SigLIP, CLIP, BEiT); "
        "transformers can run it: pip install 'vit-serve[transformers]'"
    )


def test_missing_timm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "timm")
    sentence = refusal(write_resnet(tmp_path))
    assert "timm's resnet18 is not one of vit-serve's own models" in sentence
    assert sentence.endswith("pip install 'vit-serve[timm]', with torchvision from the index that torch is from")


@pytest.mark.parametrize("choice", ["none", "timm"])
def test_another_choice_is_refused(tmp_path: Path, choice: Any) -> None:
    assert f"transformers can run it, but {choice} was chosen" in refusal(write_swin(tmp_path), library=choice)


def test_torchvision_of_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"operator torchvision::nms does not exist\nin {name}")

    directory = write_resnet(tmp_path)
    monkeypatch.setattr(importlib, "import_module", fail)
    assert refusal(directory) == (
        f"torchvision 0.28.0 does not load with torch {torch.__version__} (operator torchvision::nms does not exist): "
        "install torchvision from the index that torch is from"
    )


def test_timm_without_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    directory = write_resnet(tmp_path)
    without(monkeypatch, "torchvision")
    monkeypatch.setattr(importlib, "import_module", fail)
    assert refusal(directory).startswith("timm needs torchvision, which is not installed")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    directory = write_swin(tmp_path, architectures=["MyForImageClassification"], auto_map={"AutoModel": "my.Model"})
    assert refusal(directory).endswith("its code is on the hub (auto_map); vit-serve runs no code of a checkpoint")


@pytest.mark.parametrize("architecture", ["SwinModel", "SwinBackbone", "SwinForMaskedImageModeling"])
def test_model_without_classifier_is_refused(tmp_path: Path, architecture: str) -> None:
    sentence = refusal(write_swin(tmp_path, architectures=[architecture]))
    assert f"{architecture} has no classifier of images; serve a fine-tune (SwinForImageClassification)" in sentence


def test_classifier_beyond_the_list_is_refused(tmp_path: Path) -> None:
    directory = write_swin(tmp_path, architectures=["LevitForImageClassification"], model_type="levit")
    assert "architecture 'LevitForImageClassification' is not supported" in refusal(directory)


def test_missing_head_is_never_invented(tmp_path: Path) -> None:
    edit_weights(write_swin(tmp_path / "swin"), drop="classifier")
    assert "classifier.bias is missing, and the library would invent it" in refusal(tmp_path / "swin")
    edit_weights(write_resnet(tmp_path / "resnet"), drop="fc")
    assert "fc.bias is missing, and the library would invent it" in refusal(tmp_path / "resnet")


@pytest.mark.parametrize("write", [write_swin, write_resnet])
def test_unexpected_tensor_is_refused(tmp_path: Path, write: Any) -> None:
    edit_weights(write(tmp_path), {"extra": torch.ones(2)})
    assert "extra is not expected" in refusal(tmp_path)


@pytest.mark.parametrize(("write", "head"), [(write_swin, "classifier.weight"), (write_resnet, "fc.weight")])
def test_tensor_of_another_shape_is_refused(tmp_path: Path, write: Any, head: str) -> None:
    edit_weights(write(tmp_path), {head: torch.ones(5, 7)})
    assert f"{head} has shape (5, 7), expected (3, " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [(torch.full((3,), torch.nan), "values that are not finite"), (torch.ones(3, dtype=torch.int8), "is of int8")],
)
def test_bad_tensor_is_refused(tmp_path: Path, values: torch.Tensor, message: str) -> None:
    edit_weights(write_swin(tmp_path), {"classifier.bias": values})
    assert message in refusal(tmp_path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    directory = write_swin(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    torch.save({"state_dict": Evil()}, directory / "pytorch_model.bin")
    assert "holds more than tensors" in refusal(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shiny_new_key": 3}, "shiny_new_key 3 is not known here"),
        ({"depths": [1, 10**6]}, "depths [1, 1000000] is more than any model has"),
        ({"depths": [200, 200]}, "up to 256 layers are supported"),
        ({"window_size": 500}, "window_size 500 is more than any model has"),
        ({"embed_dim": 8192, "num_heads": [1, 1]}, "but the configuration asks for"),
        ({"num_channels": 4}, "images have three channels"),
        ({"model_type": "swinv2"}, "model_type 'swinv2' does not fit the architecture"),
        ({"hidden_act": "no_such"}, "no_such"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    ],
)
def test_wrong_configuration_is_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    assert message in refusal(write_swin(tmp_path, **said))


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "features_only", "block"])
def test_argument_beyond_sizes_is_refused(tmp_path: Path, key: str) -> None:
    directory = write_resnet(tmp_path, model_args={"layers": [1, 1, 1, 1], key: "x"})
    assert f"model_args.{key} 'x' is not known here" in refusal(directory)


def test_unknown_image_processor_is_refused(tmp_path: Path) -> None:
    edit_json(write_swin(tmp_path) / "preprocessor_config.json", image_processor_type="PerceiverImageProcessor")
    assert "image_processor_type 'PerceiverImageProcessor' is not supported" in refusal(tmp_path)


def test_attention_of_a_checkpoint_is_not_fetched(tmp_path: Path) -> None:
    said = {"_attn_implementation": "owner/kernel", "attn_implementation": "owner/kernel", "dtype": "bfloat16"}
    loaded = load_checkpoint(write_swin(tmp_path, **said))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_image_size_is_refused(tmp_path: Path) -> None:
    sentence = refusal(write_swin(tmp_path), image_size=64)
    assert "is run by transformers 5.23.0, at the 32 pixels of its preprocessing alone, not at 64" in sentence


def test_images_that_the_module_refuses(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"img_size": 64, "embed_dim": 8, "depths": [1], "num_heads": [1], "window_size": 4}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **arguments)
    timm.models.save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    pretrained = {"input_size": [3, 96, 96], "fixed_input_size": False, "crop_pct": 0.9}
    edit_json(tmp_path / "config.json", pretrained_cfg=pretrained)
    assert "on images of 96 pixels, which the preprocessing makes" in refusal(tmp_path)
    edit_json(tmp_path / "config.json", model_args={})
    assert "but the configuration asks for" in refusal(tmp_path)


def test_bare_file_without_classifier_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2, 3, 7, 7)}, tmp_path / "bare.safetensors")
    assert "there is no fc.weight" in refusal(tmp_path / "bare.safetensors", "timm/resnet18")
    assert "Invalid pretrained tag" in refusal(tmp_path / "bare.safetensors", "timm/resnet18.no_such_tag")
    assert "has no architecture resnet19" in refusal(tmp_path / "bare.safetensors", "timm/resnet19")

"""Small models that transformers and timm run for the service, each saved and answered by its own library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.references import Answer, Fill, Reference
from tests.support.weights import measure_batch_norm

import timm  # isort: skip
import transformers  # isort: skip
from PIL import Image  # isort: skip
from safetensors.torch import save_file  # isort: skip
from timm.data.config import resolve_data_config  # isort: skip
from timm.data.model_config import resolve_input_data_config  # isort: skip
from timm.data.transforms_factory import create_transform  # isort: skip
from timm.models import save_for_hf  # isort: skip

CLASSES = 11
"""Classes of each model."""

FEATURES: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "Pvt": lambda _, output: output.last_hidden_state[:, 0],
    "PvtV2": lambda _, output: output.last_hidden_state.mean(dim=(2, 3)),
    "PoolFormer": lambda model, output: model.norm(output.last_hidden_state).mean(dim=(2, 3)),
}
"""Features of families of transformers that have no `pooler_output`: model, output of its encoder -> (B, F)."""


def _transformers(family: str, processor: str, told: dict[str, Any], **config: Any) -> Reference:
    module = processor.lower().replace("mobilenetv", "mobilenet_v")
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    architecture = f"{family}ForImageClassification"

    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        made = getattr(__import__(path, fromlist=["x"]), f"{processor}ImageProcessorPil")(**told)
        config_class = getattr(transformers, f"{family}Config")
        model = getattr(transformers, architecture)(config_class(num_labels=CLASSES, **config))
        measure_batch_norm(fill(model), 64).save_pretrained(directory)
        content = {**made.to_dict(), "image_processor_type": f"{processor}ImageProcessor"}
        (directory / "preprocessor_config.json").write_text(json.dumps(content))

        def answer(image: Image.Image) -> torch.Tensor:
            inputs = made(image, return_tensors="pt")
            output = model.base_model(**inputs)
            features = FEATURES[family](model, output) if family in FEATURES else output.pooler_output.flatten(1)
            return torch.cat((model(**inputs).logits, features), dim=1)[0]

        return directory, answer

    return Reference("transformers", architecture, write, features=True)


def transformers_references() -> list[Reference]:
    """Return a small model of each family that transformers runs."""
    square: dict[str, Any] = {"size": {"height": 64, "width": 64}}
    edge: dict[str, Any] = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
    shortest: dict[str, Any] = {"size": {"shortest_edge": 64}}
    pooled: dict[str, Any] = {**shortest, "crop_size": {"height": 64, "width": 64}}
    stages: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    windows: dict[str, Any] = {"image_size": 64, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
    heads: dict[str, Any] = {"hidden_sizes": [16, 32, 40, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 5, 8]}
    necks = {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 64], "num_attention_heads": 2}
    efficient = {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
    return [
        _transformers("Swin", "ViT", square, **windows),
        _transformers("Swinv2", "ViT", square, **windows),
        _transformers("ConvNext", "ConvNext", shortest, **stages),
        _transformers("ConvNextV2", "ConvNext", shortest, **stages),
        _transformers("ResNet", "ConvNext", shortest, embedding_size=16, **stages),
        _transformers("RegNet", "ConvNext", shortest, embedding_size=16, groups_width=8, **stages),
        _transformers("MobileNetV1", "MobileNetV1", edge, depth_multiplier=0.25, image_size=64),
        _transformers("MobileNetV2", "MobileNetV2", edge, depth_multiplier=0.35, image_size=64),
        _transformers("MobileViT", "MobileViT", edge, image_size=64, **necks),
        _transformers("MobileViTV2", "MobileViT", edge, image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]),
        _transformers("EfficientNet", "EfficientNet", {**square, "rescale_offset": True, "resample": 0}, **efficient),
        _transformers("Pvt", "Pvt", square, image_size=64, **heads),
        _transformers("PvtV2", "Pvt", square, image_size=64, **heads),
        _transformers("Hiera", "Bit", edge, image_size=[64, 64], embed_dim=16, depths=[1, 1, 2, 1]),
        _transformers(
            "FocalNet", "Bit", edge, image_size=64, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]
        ),
        _transformers("PoolFormer", "PoolFormer", pooled, hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 2, 1]),
    ]


def _timm(architecture: str, size: int = 96, **arguments: Any) -> Reference:
    overlay = {"input_size": (3, size, size)}

    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        made = timm.create_model(architecture, num_classes=CLASSES, pretrained_cfg_overlay=overlay, **arguments)
        model = measure_batch_norm(fill(made), size)
        save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
        return directory, _timm_answer(model)

    return Reference("timm", architecture, write, features=True)


def _timm_file(architecture: str) -> Reference:
    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        model = measure_batch_norm(fill(timm.create_model(architecture, num_classes=CLASSES)), 224)
        directory.mkdir(exist_ok=True)
        save_file(model.state_dict(), directory / "bare.safetensors")
        return directory / "bare.safetensors", _timm_answer(model)

    settings = (("architecture", f"timm/{architecture}"),)
    return Reference("timm", f"{architecture}, bare file", write, settings, features=True)


def _timm_wrapper(architecture: str) -> Reference:
    said: dict[str, Any] = {"input_size": [3, 96, 96], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.25] * 3}

    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        told: dict[str, Any] = {"num_labels": CLASSES, "pretrained_cfg": said}
        config = transformers.TimmWrapperConfig(architecture=architecture, **told)
        model: Any = transformers.TimmWrapperForImageClassification(config)
        measure_batch_norm(fill(model), 96).save_pretrained(directory)
        return directory, _timm_answer(model.timm_model, create_transform(**resolve_data_config(pretrained_cfg=said)))

    return Reference("timm", f"{architecture}, TimmWrapper", write, features=True)


def _timm_answer(model: Any, transform: Any = None) -> Answer:
    transform = transform or create_transform(**resolve_input_data_config(model))

    def answer(image: Image.Image) -> torch.Tensor:
        pixels = transform(image)[None]
        features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return torch.cat((model(pixels), features), dim=1)[0]

    return answer


def timm_references() -> list[Reference]:
    """Return a small model of each family that timm runs."""
    windows: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
    stages: dict[str, Any] = {"dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    return [
        _timm("swin_tiny_patch4_window7_224", 64, **windows),
        _timm("swinv2_tiny_window8_256", 64, **windows),
        _timm("convnext_atto", **stages),
        _timm("convnextv2_atto", **stages),
        _timm("resnet50", layers=[1, 1, 1, 1]),
        _timm("resnext50_32x4d", layers=[1, 1, 1, 1]),
        _timm("wide_resnet50_2", layers=[1, 1, 1, 1]),
        _timm("efficientnet_b0"),
        _timm("tf_efficientnetv2_b0"),
        _timm("mobilenetv3_small_050"),
        _timm("tf_mobilenetv3_small_minimal_100"),
        _timm("mobilenetv4_conv_small_035"),
        _timm("mobilenetv4_hybrid_medium"),
        _timm("fastvit_t8", layers=[1, 1, 1, 1]),
        _timm("maxvit_pico_rw_256", 128, img_size=128, depths=[1, 1], embed_dim=[32, 64]),
        _timm("maxvit_tiny_tf_224", 64, img_size=64, depths=[1, 1], embed_dim=[32, 64]),
        _timm_file("resnet10t"),
        _timm_wrapper("resnet10t"),
    ]


def library_references() -> list[Reference]:
    return [*transformers_references(), *timm_references()]

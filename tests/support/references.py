"""Models of transformers, timm and torchvision that vit-serve runs itself, each saved and answered by its own library."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.support.torchvision_operators import declare_missing_operators

declare_missing_operators()

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.data.config import resolve_data_config  # noqa: E402
from timm.data.model_config import resolve_input_data_config  # noqa: E402
from timm.data.transforms_factory import create_transform  # noqa: E402
from timm.models import save_for_hf  # noqa: E402
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil  # noqa: E402
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil  # noqa: E402
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402

Answer = Callable[[Image.Image], torch.Tensor]
"""Classification of an RGB image by the library, as logits (K,), or logits and features (K + F,)."""

Fill = Callable[[Any], Any]
"""Function that fills a model with weights and returns it (`weights.py`)."""


Write = Callable[[Path, Fill], tuple[Path, Answer]]
"""Function that fills a model, saves it below a folder, and returns its path and the library's classification."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One configuration of one library."""

    library: str
    name: str
    write: Write
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of the service besides the path."""
    features: bool = False
    """The library's answer has the features of the image too, as its users take them."""
    write_short: Write | None = None
    """The same with two blocks, which pass the same code in less time; None if the file does not tell its depth."""


def hugging_face(name: str, architecture: str, processor: Any, **changes: Any) -> Reference:
    library_config = getattr(transformers, f"{architecture.partition('For')[0]}Config")
    sizes = {"mlp_ratio": 4} if architecture.startswith("Dinov2") else {"intermediate_size": 192}
    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "num_labels": 11}

    nested = architecture.startswith(("CLIP", "MetaClip2", "Siglip"))  # the image encoder has a configuration of its own

    def write(directory: Path, fill: Fill, **more: Any) -> tuple[Path, Answer]:
        said = {**small, **sizes, **changes, **more}
        labels = said.pop("num_labels")
        config = library_config(vision_config=said, num_labels=labels) if nested else library_config(**said, num_labels=labels)
        model = fill(getattr(transformers, architecture)(config))
        model.save_pretrained(directory)
        content = {**processor.to_dict(), "image_processor_type": type(processor).__name__.removesuffix("Pil")}
        (directory / "preprocessor_config.json").write_text(json.dumps(content))
        return directory, lambda image: model(**processor(image, return_tensors="pt")).logits[0]

    return Reference("transformers", name, write, write_short=partial(write, num_hidden_layers=2))


def timm_hub(architecture: str, **arguments: Any) -> Reference:
    def write(directory: Path, fill: Fill, **more: Any) -> tuple[Path, Answer]:
        model = fill(timm.create_model(architecture, num_classes=11, **{**arguments, **more}))
        save_for_hf(model, str(directory), safe_serialization=True)
        return directory, timm_answer(model)

    suffix = "".join(f", {name}={value}" for name, value in arguments.items())
    return Reference("timm", architecture + suffix, write, write_short=partial(write, depth=2))


def timm_file(architecture: str) -> Reference:
    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        model = fill(timm.create_model(architecture, num_classes=11))
        directory.mkdir(exist_ok=True)
        save_file(model.state_dict(), directory / "bare.safetensors")
        return directory / "bare.safetensors", timm_answer(model)

    return Reference("timm", f"{architecture}, bare file", write, (("architecture", f"timm/{architecture}"),))


def timm_script(architecture: str, name: str, saved: Callable[[dict[str, torch.Tensor]], Any]) -> Reference:
    """Return a reference with a file as a training script saves it."""

    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        model = fill(timm.create_model(architecture, num_classes=11))
        directory.mkdir(exist_ok=True)
        torch.save(saved(model.state_dict()), directory / "model_best.pth.tar")
        return directory / "model_best.pth.tar", timm_answer(model)

    return Reference("timm", f"{architecture}, {name}", write, (("architecture", f"timm/{architecture}"),))


def timm_flat(architecture: str, **said: Any) -> Reference:
    """Return a reference with the config.json of timm's versions until 2022, read by timm itself."""

    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        save_for_hf(fill(timm.create_model(architecture, num_classes=11)), str(directory), safe_serialization=True)
        labels = [f"label {index}" for index in range(11)]
        flat = {"architecture": architecture, "num_classes": 11, "num_features": 192, "labels": labels, **said}
        (directory / "config.json").write_text(json.dumps(flat))
        model: Any = timm.create_model(f"local-dir:{directory}", pretrained=True)
        return directory, timm_answer(model.eval())

    return Reference("timm", f"{architecture}, flat config", write)


def timm_wrapper(architecture: str, pretrained_cfg: dict[str, Any]) -> Reference:
    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        said: dict[str, Any] = {"num_labels": 11, "pretrained_cfg": pretrained_cfg}
        config = transformers.TimmWrapperConfig(architecture=architecture, **said)
        model = fill(transformers.TimmWrapperForImageClassification(config))
        model.save_pretrained(directory)
        transform = create_transform(**resolve_data_config(pretrained_cfg=pretrained_cfg))
        return directory, lambda image: model(transform(image)[None]).logits[0]

    return Reference("transformers", f"TimmWrapper, {architecture}", write)


def timm_answer(model: Any) -> Answer:
    transform = create_transform(**resolve_input_data_config(model))
    return lambda image: model(transform(image)[None])[0]


def torchvision_file(architecture: str, weights: Any, **arguments: Any) -> Reference:
    def write(directory: Path, fill: Fill) -> tuple[Path, Answer]:
        model = fill(getattr(torchvision.models, architecture)(num_classes=11, **arguments))
        directory.mkdir(exist_ok=True)
        torch.save(model.state_dict(), directory / "model.pth")
        transform = weights.transforms(antialias=True)
        return directory / "model.pth", lambda image: model(transform(image)[None])[0]

    return Reference("torchvision", f"{architecture} {weights.name}", write, (("architecture", f"torchvision/{architecture}"),))


def references() -> list[Reference]:
    """All configurations of the three libraries."""
    return [*hugging_face_references(), *timm_references(), *torchvision_references(), *odd_references(), *script_references()]


def hugging_face_references() -> list[Reference]:
    vit = ViTImageProcessorPil(size={"height": 64, "width": 64})
    deit = DeiTImageProcessorPil(size={"height": 72, "width": 72}, crop_size={"height": 64, "width": 64})
    bit = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    clip = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    beit = BeitImageProcessorPil(size={"height": 64, "width": 64})
    convnext = ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)
    convnext_large = ConvNextImageProcessorPil(size={"shortest_edge": 384})
    classes = "ForImageClassification"
    small, dino = {"image_size": 64, "patch_size": 16}, {"image_size": 56, "patch_size": 14}
    published = {"image_size": 518, "patch_size": 14}
    return [
        hugging_face("ViT", f"ViT{classes}", vit, **small),
        hugging_face("ViT, no qkv bias, eps 1e-3", f"ViT{classes}", vit, **small, qkv_bias=False, layer_norm_eps=1e-3),
        hugging_face("ViT, gelu_new", f"ViT{classes}", vit, **small, hidden_act="gelu_new"),
        hugging_face("ViT, quick_gelu", f"ViT{classes}", vit, **small, hidden_act="quick_gelu"),
        hugging_face("ViT, ConvNext processor", f"ViT{classes}", convnext, **small),
        hugging_face("ViT at 384, ConvNext processor", f"ViT{classes}", convnext_large, image_size=384, patch_size=32),
        hugging_face("DeiT", f"DeiT{classes}", deit, **small),
        hugging_face("DeiT, two heads", f"DeiT{classes}WithTeacher", deit, **small),
        hugging_face("ViTMSN", f"ViTMSN{classes}", vit, **small),
        hugging_face("I-JEPA", f"IJepa{classes}", vit, **small),
        hugging_face("SigLIP", f"Siglip{classes}", SiglipImageProcessorPil(size={"height": 64, "width": 64}), **small),
        hugging_face("CLIP", f"CLIP{classes}", clip, **small),
        hugging_face("MetaCLIP 2, gelu", f"MetaClip2{classes}", clip, **small, hidden_act="gelu"),
        hugging_face("BEiT, relative positions", f"Beit{classes}", beit, **small, use_relative_position_bias=True),
        hugging_face(
            "BEiT, class token", f"Beit{classes}", beit, **small, use_relative_position_bias=True, use_mean_pooling=False
        ),
        hugging_face("DiT, absolute positions", f"Beit{classes}", beit, **small, use_absolute_position_embeddings=True),
        hugging_face("BEiT, no LayerScale", f"Beit{classes}", beit, **small, layer_scale_init_value=0.0),
        hugging_face("Data2Vec", f"Data2VecVision{classes}", beit, **small, use_relative_position_bias=True),
        hugging_face("DINOv2", f"Dinov2{classes}", bit, **dino),
        hugging_face("DINOv2 of 518 at 56", f"Dinov2{classes}", bit, **published),
        hugging_face("DINOv2, SwiGLU", f"Dinov2{classes}", bit, **dino, use_swiglu_ffn=True),
        hugging_face("DINOv2, 4 registers", f"Dinov2WithRegisters{classes}", bit, **dino),
        hugging_face("DINOv2 of 518 at 56, 4 registers", f"Dinov2WithRegisters{classes}", bit, **published),
    ]


def timm_references() -> list[Reference]:
    return [
        timm_hub("vit_tiny_patch16_224"),
        timm_hub("vit_tiny_patch16_224", img_size=96),
        timm_hub("vit_tiny_patch16_224", global_pool="avg"),
        timm_hub("vit_tiny_patch16_224", global_pool="avg", class_token=False, reg_tokens=2),
        timm_hub("vit_tiny_patch16_224", pre_norm=True, no_embed_class=True, init_values=0.1),
        timm_hub("vit_small_patch32_224"),
        timm_hub("vit_little_patch16_reg4_gap_256"),
        timm_hub("vit_medium_patch16_gap_240"),
        timm_hub("vit_xsmall_patch16_clip_224"),
        timm_hub("vit_base_patch32_clip_quickgelu_224"),
        timm_hub("vit_base_patch16_gap_224"),
        timm_hub("vit_small_patch14_dinov2", img_size=98),
        timm_hub("vit_small_patch14_reg4_dinov2", img_size=98),
        timm_hub("deit_tiny_patch16_224"),
        timm_hub("deit_tiny_distilled_patch16_224"),
        timm_hub("deit3_small_patch16_224"),
        *timm_families(),
        timm_file("vit_small_patch16_224"),
        timm_file("deit_small_distilled_patch16_224"),
    ]


def timm_families() -> list[Reference]:
    """Families with options of their own, made small."""
    small = {"embed_dim": 96, "depth": 3, "num_heads": 3}
    wide = {"embed_dim": 192, "depth": 3, "num_heads": 3}
    return [
        timm_hub("vit_base_patch16_siglip_224", **wide, img_size=64),
        timm_hub("vit_base_patch32_siglip_256", **wide),
        timm_hub("vit_base_patch16_siglip_gap_224", **small),
        timm_hub("vit_so150m_patch16_reg4_map_256", **wide),
        timm_hub("vit_so150m_patch16_reg4_gap_256", **small),
        timm_hub("vit_intern300m_patch14_448", **wide),
        timm_hub("vit_base_patch16_224_miil", **small),
        timm_hub("eva_large_patch14_196", **small),
        timm_hub("eva02_tiny_patch14_224", depth=3),
        timm_hub("eva02_base_patch14_224", depth=3),
        timm_hub("eva02_base_patch14_448", **small),
        timm_hub("flexivit_small", depth=3),
        timm_hub("vit_tiny_patch16_dinov3_qkvb", depth=3),
        timm_hub("vit_small_plus_patch16_dinov3", depth=3),
        timm_hub("beit_base_patch16_224", **small, img_size=64),
        timm_hub("beitv2_base_patch16_224", **small),
    ]


def torchvision_references() -> list[Reference]:
    models = torchvision.models
    return [
        torchvision_file("vit_b_16", models.ViT_B_16_Weights.IMAGENET1K_V1),
        torchvision_file("vit_b_16", models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, image_size=384),
        torchvision_file("vit_b_32", models.ViT_B_32_Weights.IMAGENET1K_V1),
    ]


def odd_references() -> list[Reference]:
    """Return references with unusual configurations."""
    size, dino = {"height": 64, "width": 64}, {"image_size": 56, "patch_size": 14}
    small, vit = {"image_size": 64, "patch_size": 16}, "ViTForImageClassification"
    raw_pixels = ViTImageProcessorPil(size=size, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3)
    not_normalised = DeiTImageProcessorPil(size=size, crop_size=size, do_normalize=False, rescale_factor=1 / 127.5, resample=1)
    padded = BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 56, "width": 56}, image_mean=0.4)
    said = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8, "crop_mode": "squash", "interpolation": "bilinear"}
    tiny = "vit_tiny_patch16_224"
    return [
        hugging_face("ViT, do_rescale=False", vit, raw_pixels, **small),
        hugging_face("DeiT, do_normalize=False, lanczos", "DeiTForImageClassification", not_normalised, **small),
        hugging_face("DINOv2, crop wider than the image", "Dinov2ForImageClassification", padded, **dino, hidden_act="relu"),
        timm_wrapper(tiny, {**said, "input_size": [3, 224, 224]}),
        timm_flat(tiny, **said),
        timm_hub(tiny, num_heads=6, act_layer="quick_gelu"),
        timm_hub(tiny, embed_dim=96, depth=5, mlp_ratio=2.5, patch_size=32, norm_layer="layernorm"),
        timm_hub(tiny, img_size=64, dynamic_img_size=True, qkv_bias=False),
    ]


def script_references() -> list[Reference]:
    """Files as training scripts write them."""
    tiny, arguments = "vit_tiny_patch16_224", argparse.Namespace(model="vit_tiny_patch16_224", lr=1e-3)

    def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {prefix + key: value for key, value in state.items()}

    def head_behind_dropout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key.replace("head.", "head.1."): value for key, value in state.items()}

    return [
        timm_script(
            tiny,
            "train.py with a moving average",
            lambda state: {
                "epoch": 3,
                "args": arguments,
                "state_dict": {key: value + 1 for key, value in state.items()},
                "state_dict_ema": state,
            },
        ),
        timm_script("deit_tiny_patch16_224", "DeiT's script", lambda state: {"model": state, "args": arguments, "scaler": {}}),
        timm_script(tiny, "compiled, in DataParallel", lambda state: prefixed("_orig_mod.module.", state)),
        timm_script(tiny, "Lightning", lambda state: {"state_dict": prefixed("model.", state), "global_step": 7}),
        timm_script(tiny, "head behind dropout", head_behind_dropout),
    ]

"""Families of Hugging Face transformers: how each one's config.json is read, and which defaults it has.

A family is a set of classes with one `model_type`. What a configuration leaves out has the default of its class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from model.checkpoints.blueprint import integer, number, side, truth
from model.checkpoints.hugging_face import config_keys as keys
from model.checkpoints.hugging_face.key_maps import (
    beit_key_map,
    clip_encoder_key_map,
    contrastive_key_map,
    dinov2_key_map,
    dinov3_key_map,
    msn_key_map,
    siglip_encoder_key_map,
    siglip_key_map,
    teacher_key_map,
    vit_key_map,
)
from model.checkpoints.known_keys import KnownKeys, check_keys
from model.checkpoints.tensors.key_map import KeyMap
from model.config import Activation, Resampling, ViTConfig

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`hidden_act` as transformers' ACT2FN names it."""


@dataclass(frozen=True, slots=True)
class Family:
    """Defaults and readers that transformers' classes of one `model_type` have in common."""

    model_type: str
    keys: KnownKeys
    """Keys of config.json."""
    read: Callable[["Family", dict[str, Any], int], ViTConfig]
    """Makes the configuration from a checked config.json and the number of classes."""
    processor: str
    """Image processor where preprocessor_config.json names none."""
    patch_size: int = 16
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    resampling: Resampling = "bicubic"
    interpolates: bool = False
    """True if the model takes images of another size than configured without being told."""
    vision_config: KnownKeys | None = None
    """Keys of `vision_config`, where the image encoder is configured there."""

    def config(self, raw: dict[str, Any], num_classes: int) -> ViTConfig:
        """Read a config.json; what it leaves out is transformers' default.

        Raises:
            ValueError, TypeError: a key that is not known, or a value that is wrong.
        """
        check_keys(raw, self.keys)
        if raw.get("model_type") not in (None, self.model_type):
            wrong = f"model_type {raw['model_type']!r} does not fit the architecture"
            raise ValueError(f"{wrong}, whose type is {self.model_type!r}")
        if self.vision_config is not None:
            vision = raw.get("vision_config") or {}
            if not isinstance(vision, dict):
                raise ValueError("vision_config must be an object")
            check_keys(vision, self.vision_config, "vision_config")
            raw = vision | {"projection_dim": integer(raw, "projection_dim", 512)}  # the outer one counts
        if integer(raw, "num_channels", 3) != 3:
            raise ValueError(f"num_channels is {raw['num_channels']!r}, but images have three channels")
        return self.read(self, raw, num_classes)


def _plain(family: Family, raw: dict[str, Any], num_classes: int, **options: Any) -> ViTConfig:
    """Read the sizes that all families name alike; `options` are what is special to one."""
    return ViTConfig(
        **{
            "num_classes": num_classes,
            "image_size": side(raw.get("image_size", 224), "image_size"),
            "patch_size": side(raw.get("patch_size", family.patch_size), "patch_size"),
            "embed_dim": integer(raw, "hidden_size", 768),
            "depth": integer(raw, "num_hidden_layers", 12),
            "num_heads": integer(raw, "num_attention_heads", 12),
            "mlp_dim": integer(raw, "intermediate_size", 3072),
            "activation": _activation(raw.get("hidden_act", family.activation)),
            "qkv_bias": truth(raw, "qkv_bias", default=True),
            "layer_norm_eps": number(raw, "layer_norm_eps", family.layer_norm_eps),
            **options,
        }
    )


def _dinov2(family: Family, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    swiglu = truth(raw, "use_swiglu_ffn", default=False)
    mlp_dim = int(integer(raw, "hidden_size", 768) * number(raw, "mlp_ratio", 4))
    options: dict[str, Any] = {"mlp_dim": mlp_dim}
    if swiglu:
        options = {"mlp_dim": (int(mlp_dim * 2 / 3) + 7) // 8 * 8, "activation": "silu", "swiglu": True}
    registers = integer(raw, "num_register_tokens", 4) if family.model_type == "dinov2_with_registers" else 0
    coverage = "class+patches" if registers else "all"
    options |= {"reg_tokens": registers, "pos_embed_coverage": coverage}
    return _plain(family, raw, num_classes, **options, layer_scale=True, pooling="token+avg")


def _dinov3(family: Family, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    raw = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, **raw}
    gated = truth(raw, "use_gated_mlp", default=False)
    return _plain(
        family,
        raw,
        num_classes,
        swiglu=gated,
        layer_scale=True,
        reg_tokens=integer(raw, "num_register_tokens", 0),
        pos_embed_coverage="none",
        rope="dinov3",
        rope_theta=number(raw, "rope_theta", 100.0),
    )


def _beit(family: Family, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    mean = truth(raw, "use_mean_pooling", default=True)
    return _plain(
        family,
        raw,
        num_classes,
        layer_scale=number(raw, "layer_scale_init_value", 0.1) > 0,
        pos_embed_coverage="all" if truth(raw, "use_absolute_position_embeddings", default=False) else "none",
        relative_positions=truth(raw, "use_relative_position_bias", default=False),
        pooling="avg" if mean else "token",
        fc_norm=mean,
    )


def _projected(family: Family, raw: dict[str, Any], num_classes: int) -> ViTConfig:
    return _plain(family, raw, num_classes, pre_norm=True, projection_dim=integer(raw, "projection_dim", 512))


VIT = Family("vit", keys.VIT, _plain, "ViTImageProcessor")
DEIT = Family("deit", keys.VIT, partial(_plain, dist_token=True), "DeiTImageProcessor")
TWO_HEADS = Family("deit", keys.VIT, partial(_plain, dist_token=True, head_dist=True), "DeiTImageProcessor")
MSN = Family("vit_msn", keys.VIT, _plain, "ViTImageProcessor", layer_norm_eps=1e-6)
IJEPA = Family("ijepa", keys.VIT, partial(_plain, class_token=False, pooling="avg"), "ViTImageProcessor")
BEIT = Family("beit", keys.BEIT, _beit, "BeitImageProcessor")
DATA2VEC = Family("data2vec-vision", keys.BEIT, _beit, "BeitImageProcessor")
SIGLIP = Family(
    "siglip",
    keys.CONTRASTIVE,
    partial(_plain, class_token=False, pooling="avg"),
    "SiglipImageProcessor",
    layer_norm_eps=1e-6,
    activation="gelu_pytorch_tanh",
    vision_config=keys.VISION_CONFIG,
)
CLIP, METACLIP2 = (
    Family(
        model_type,
        keys.CONTRASTIVE,
        partial(_plain, pooling="avg", pre_norm=True, final_norm=False),
        "CLIPImageProcessor",
        patch_size=32,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        vision_config=keys.VISION_CONFIG,
    )
    for model_type in ("clip", "metaclip_2")
)
DINOV2 = Family("dinov2", keys.DINOV2, _dinov2, "BitImageProcessor", patch_size=14, layer_norm_eps=1e-6, interpolates=True)
REGISTERS = Family(
    "dinov2_with_registers",
    keys.DINOV2_WITH_REGISTERS,
    _dinov2,
    "BitImageProcessor",
    layer_norm_eps=1e-6,
    resampling="antialias",
    interpolates=True,
)

ARCHITECTURES: dict[str, tuple[Family, Callable[[ViTConfig], KeyMap]]] = {
    "ViTForImageClassification": (VIT, lambda _: vit_key_map("vit.")),
    "DeiTForImageClassification": (DEIT, lambda _: vit_key_map("deit.")),
    "DeiTForImageClassificationWithTeacher": (TWO_HEADS, lambda _: teacher_key_map()),
    "ViTMSNForImageClassification": (MSN, lambda _: msn_key_map()),
    "IJepaForImageClassification": (IJEPA, lambda _: vit_key_map("ijepa.")),
    "BeitForImageClassification": (BEIT, lambda _: beit_key_map("beit.")),
    "Data2VecVisionForImageClassification": (DATA2VEC, lambda _: beit_key_map("data2vec_vision.")),
    "SiglipForImageClassification": (SIGLIP, lambda _: siglip_key_map()),
    "CLIPForImageClassification": (CLIP, lambda _: contrastive_key_map()),
    "MetaClip2ForImageClassification": (METACLIP2, lambda _: contrastive_key_map()),
    "Dinov2ForImageClassification": (DINOV2, lambda config: dinov2_key_map("dinov2.", swiglu=config.swiglu)),
    "Dinov2WithRegistersForImageClassification": (
        REGISTERS,
        lambda config: dinov2_key_map("dinov2_with_registers.", swiglu=config.swiglu),
    ),
}
"""Classes of transformers, each with its family and the names of its tensors."""


_SIGLIP_VISION = replace(SIGLIP, model_type="siglip_vision_model", keys=keys.VISION_CONFIG, vision_config=None)
_CLIP_VISION, _METACLIP2_VISION = (
    replace(family, model_type=f"{family.model_type}_vision_model", keys=keys.VISION_CONFIG, vision_config=None)
    for family in (CLIP, METACLIP2)
)
DINOV3 = Family("dinov3_vit", keys.DINOV3, _dinov3, "DINOv3ViTImageProcessor", layer_norm_eps=1e-5, interpolates=True)

_Encoder = tuple[Family, dict[str, Any], Callable[[ViTConfig], KeyMap]]


def _contrastive_encoder(family: Family, read: Callable[[Family, dict[str, Any], int], ViTConfig] = _plain) -> _Encoder:
    changes = {"pre_norm": True, "pooling": "token", "final_norm": True}
    return replace(family, read=read), changes, lambda _: clip_encoder_key_map()


ENCODERS: dict[str, _Encoder] = {
    "ViTModel": (VIT, {}, lambda _: vit_key_map("")),
    "DeiTModel": (DEIT, {}, lambda _: vit_key_map("")),
    "ViTMSNModel": (MSN, {}, lambda _: vit_key_map("")),
    "IJepaModel": (IJEPA, {}, lambda _: vit_key_map("")),
    "BeitModel": (BEIT, {}, lambda _: beit_key_map("")),
    "Dinov2Model": (DINOV2, {"pooling": "token"}, lambda config: dinov2_key_map("", swiglu=config.swiglu)),
    "Dinov2WithRegistersModel": (REGISTERS, {"pooling": "token"}, lambda config: dinov2_key_map("", swiglu=config.swiglu)),
    "DINOv3ViTModel": (DINOV3, {}, lambda config: dinov3_key_map(gated=config.swiglu)),
    "SiglipVisionModel": (_SIGLIP_VISION, {"pooling": "map"}, lambda _: siglip_encoder_key_map()),
    "SiglipModel": (SIGLIP, {"pooling": "map"}, lambda _: siglip_encoder_key_map()),
    "CLIPVisionModel": _contrastive_encoder(_CLIP_VISION),
    "CLIPVisionModelWithProjection": _contrastive_encoder(_CLIP_VISION, _projected),
    "CLIPModel": _contrastive_encoder(CLIP, _projected),
    "MetaClip2VisionModel": _contrastive_encoder(_METACLIP2_VISION),
    "MetaClip2VisionModelWithProjection": _contrastive_encoder(_METACLIP2_VISION, _projected),
    "MetaClip2Model": _contrastive_encoder(METACLIP2, _projected),
}
"""Classes without a classifier, each with its family, what differs from the family's classifier, and the names of its tensors.
The output is what the class gives as `pooler_output`, or the class token or mean where that is a layer for
pretraining (../docs/models.md)."""


def _activation(name: Any) -> Activation:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    raise ValueError(f"hidden_act {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")

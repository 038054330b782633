"""torchvision's Vision Transformers: bare state dicts, with the presets of the weights that torchvision publishes."""

from pathlib import Path

from model.checkpoints.blueprint import Blueprint, config_errors
from model.checkpoints.labels import placeholders
from model.checkpoints.published.imagenet import LISTS
from model.checkpoints.published.trained_on import TrainedOn
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.renaming import count_classes, rename_tensors
from model.checkpoints.tensors.weights_file import WeightsFile, open_weights
from model.config import ViTConfig
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing

_SIZES = {
    # name: patch_size, embed_dim, depth, num_heads, mlp_dim (torchvision, models/vision_transformer.py)
    "vit_b_16": (16, 768, 12, 12, 3072),
    "vit_b_32": (32, 768, 12, 12, 3072),
    "vit_l_16": (16, 1024, 24, 16, 4096),
    "vit_l_32": (32, 1024, 24, 16, 4096),
    "vit_h_14": (14, 1280, 32, 16, 5120),
}

_Preset = tuple[int, int, Interpolation]

_PRESETS: dict[str, dict[str, _Preset]] = {
    # name: weights: resize, crop, interpolation (`ViT_*_Weights.*.transforms()`); the first is their `DEFAULT`
    "vit_b_16": {
        "IMAGENET1K_V1": (256, 224, "bilinear"),
        "IMAGENET1K_SWAG_E2E_V1": (384, 384, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": (224, 224, "bicubic"),
    },
    "vit_b_32": {"IMAGENET1K_V1": (256, 224, "bilinear")},
    "vit_l_16": {
        "IMAGENET1K_V1": (242, 224, "bilinear"),
        "IMAGENET1K_SWAG_E2E_V1": (512, 512, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": (224, 224, "bicubic"),
    },
    "vit_l_32": {"IMAGENET1K_V1": (256, 224, "bilinear")},
    "vit_h_14": {
        "IMAGENET1K_SWAG_E2E_V1": (518, 518, "bicubic"),
        "IMAGENET1K_SWAG_LINEAR_V1": (224, 224, "bicubic"),
    },
}

SUPPORTED = ", ".join(_SIZES)

_BLOCK = "encoder.layers.encoder_layer_*"

_KEY_MAP = KeyMap(
    {
        "cls_token": ("class_token",),
        "pos_embed": ("encoder.pos_embedding",),
        "patch_embed.proj": ("conv_proj",),
        "blocks.*.norm1": (f"{_BLOCK}.ln_1",),
        "blocks.*.attn.qkv.weight": (f"{_BLOCK}.self_attention.in_proj_weight",),
        "blocks.*.attn.qkv.bias": (f"{_BLOCK}.self_attention.in_proj_bias",),
        "blocks.*.attn.proj": (f"{_BLOCK}.self_attention.out_proj",),
        "blocks.*.norm2": (f"{_BLOCK}.ln_2",),
        "blocks.*.mlp.fc1": (f"{_BLOCK}.mlp.0",),
        "blocks.*.mlp.fc2": (f"{_BLOCK}.mlp.3",),
        "norm": ("encoder.ln",),
        "head": ("heads.head",),
    },
    renames=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
)


def read_torchvision_file(path: Path, architecture: str) -> Blueprint:
    """A bare state dict of one of torchvision's models; its position embedding tells the image size.

    Raises:
        CheckpointError: the file is broken, or the architecture is not supported.
    """
    weights = rename_tensors(open_weights(path), _KEY_MAP)
    with config_errors(path):
        name, _, named = architecture.partition(".")
        if name not in _SIZES:
            raise ValueError(f"torchvision architecture {name!r} is not supported; supported are {SUPPORTED}")
        published = next(iter(_PRESETS[name])) if named == "DEFAULT" else named
        if published and published not in _PRESETS[name]:
            raise ValueError(f"torchvision has no weights {published!r} of {name}; it has {', '.join(_PRESETS[name])}")
        patch_size, embed_dim, depth, num_heads, mlp_dim = _SIZES[name]
        config = ViTConfig(
            num_classes=count_classes(weights, _KEY_MAP),
            image_size=_image_size(weights, patch_size),
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
        )
    return Blueprint(
        name=path.stem,
        architecture=architecture,
        config=config,
        key_map=_KEY_MAP,
        preprocessing=_preset(name, published, config.image_size),
        labels=placeholders(config.num_classes),
        weights=path,
        resampling="align_corners",
        trained_on=_trained_on(published, config.num_classes),
    )


def _image_size(weights: WeightsFile, patch_size: int) -> int:
    tokens = weights.tokens("encoder.pos_embedding")
    grid = int(max(0, tokens - 1) ** 0.5)
    if grid == 0 or grid**2 != tokens - 1:
        raise ValueError("encoder.pos_embedding is not there, or not of a square of patches and a class token")
    return grid * patch_size


def _preset(name: str, published: str, image_size: int) -> Preprocessing:
    """Return the preset of the named weights, else of those trained at 224 pixels or fine-tuned at this resolution."""
    presets = _PRESETS[name]
    if not published and image_size == 224 and "IMAGENET1K_V1" in presets:
        published = "IMAGENET1K_V1"
    resize, crop, interpolation = presets[published] if published else (image_size, image_size, "bicubic")
    return Preprocessing(resize, (crop, crop), interpolation, IMAGENET_MEAN, IMAGENET_STD, crop_rounding="even")


def _trained_on(published: str, num_classes: int) -> TrainedOn | None:
    """The classes of ImageNet, if weights are named and have as many: a bare file may have been trained on any others."""
    classes = "imagenet-1k"
    if not published or num_classes != LISTS[classes]:
        return None
    return TrainedOn(classes, "torchvision", f"torchvision's weights {published}")

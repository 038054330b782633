"""torchvision's Vision Transformers: bare state dicts, with the presets of the weights that torchvision publishes."""

from pathlib import Path

from model.blueprint import Blueprint, explained
from model.config import ViTConfig
from model.layout import Layout
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from model.weights_file import WeightsFile, open_weights

_SIZES = {
    # name: patch_size, embed_dim, depth, num_heads, mlp_dim (torchvision, models/vision_transformer.py)
    "vit_b_16": (16, 768, 12, 12, 3072),
    "vit_b_32": (32, 768, 12, 12, 3072),
    "vit_l_16": (16, 1024, 24, 16, 4096),
    "vit_l_32": (32, 1024, 24, 16, 4096),
    "vit_h_14": (14, 1280, 32, 16, 5120),
}

SUPPORTED = ", ".join(_SIZES)

_BLOCK = "encoder.layers.encoder_layer_*"

_LAYOUT = Layout(
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
    }
)


def read_torchvision_file(path: Path, architecture: str, labels: tuple[str, ...] | None) -> Blueprint:
    """A bare state dict of one of torchvision's models; its position embedding tells the image size.

    Raises:
        CheckpointError: the file is broken, or the architecture is not supported.
    """
    weights = open_weights(path)
    with explained(path):
        if architecture not in _SIZES:
            raise ValueError(f"torchvision architecture {architecture!r} is not supported; supported are {SUPPORTED}")
        patch_size, embed_dim, depth, num_heads, mlp_dim = _SIZES[architecture]
        config = ViTConfig(
            num_classes=weights.shapes.get("heads.head.weight", (0,))[0],
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
        layout=_LAYOUT,
        preprocessing=_preset(architecture, config.image_size),
        labels=labels or tuple(f"LABEL_{index}" for index in range(config.num_classes)),
        weights=path,
        resampling="aligned",
    )


def _image_size(weights: WeightsFile, patch_size: int) -> int:
    tokens = weights.shapes.get("encoder.pos_embedding", (1, 0, 0))[1]
    grid = int(max(0, tokens - 1) ** 0.5)
    if grid == 0 or grid**2 != tokens - 1:
        raise ValueError("encoder.pos_embedding is not there, or not of a square of patches and a class token")
    return grid * patch_size


def _preset(architecture: str, image_size: int) -> Preprocessing:
    """`ViT_*_Weights.*.transforms()`: trained at 224 pixels, or fine-tuned at the resolution that the weights have."""
    interpolation: Interpolation
    if image_size == 224 and architecture != "vit_h_14":
        resize, interpolation = (242 if architecture == "vit_l_16" else 256), "bilinear"
    else:
        resize, interpolation = image_size, "bicubic"
    return Preprocessing(resize, (image_size, image_size), interpolation, IMAGENET_MEAN, IMAGENET_STD, crop_rounding="even")

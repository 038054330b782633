"""Features of images: what the head of a Vision Transformer reads, and other usual poolings of its tokens."""

import torch
from torch import Tensor

from model.config import ViTConfig
from model.vit import VisionTransformer


def feature_sizes(config: ViTConfig) -> dict[str, int]:
    """Return the features that a model gives, by name, with their sizes. The first is the usual one.

    It is what the head reads, named as the pooling: `token`, `avg`, `token+avg` or `map`; of an encoder with a projection
    (CLIP) `projection`. Then come `token`, the class token, and `avg`, the mean of the patches, both after the final norm.
    """
    usual: str = "projection" if config.projection_dim and not config.num_classes else config.pooling
    sizes = {usual: config.projection_dim if usual == "projection" else config.head_dim}
    if config.class_token:
        sizes.setdefault("token", config.embed_dim)
    sizes.setdefault("avg", config.embed_dim)
    return sizes


def compute_features(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """Compute the features of `feature_sizes`, one behind the other: tokens after the final norm (B, T, D) -> (B, F)."""
    config = model.config
    pooled = model.fc_norm(model.pool(tokens))
    usual, *others = feature_sizes(config)
    computed = [model.head(pooled) if usual == "projection" else pooled]
    for name in others:
        computed.append(tokens[:, 0] if name == "token" else tokens[:, config.num_prefix_tokens :].mean(dim=1))
    return torch.cat(computed, dim=1)

"""Features of images: what the head of a Vision Transformer reads, and other usual poolings of its tokens."""

import torch
from torch import Tensor

from model.config import ViTConfig
from model.vit import VisionTransformer


def feature_sizes(config: ViTConfig) -> dict[str, int]:
    """Return the features that a model gives, by name, with their sizes. The first is the usual one.

    It is what the head reads, named as the pooling: `token`, `avg`, `token+avg` or `map`; of a model with a second head for a
    distillation token `token+dist`, the mean of both tokens; of an encoder with a projection (CLIP) `projection`. Then come
    `map`, attention pooling of a classifier that reads the mean (SigLIP); `token`, the class token; and `avg`, the mean of the
    patches, without a norm that follows pooling.
    """
    usual: str = config.pooling
    if config.head_dist:
        usual = "token+dist"
    elif config.projection_dim and not config.num_classes:
        usual = "projection"
    sizes = {usual: config.projection_dim if usual == "projection" else config.head_dim}
    if config.attention_pool:
        sizes.setdefault("map", config.embed_dim)
    if config.class_token:
        sizes.setdefault("token", config.embed_dim)
    sizes.setdefault("avg", config.embed_dim)
    return sizes


def compute_features(model: VisionTransformer, tokens: Tensor, pooled: Tensor) -> Tensor:
    """Compute the features of `feature_sizes`, one behind the other.

    Args:
        model: the model.
        tokens: (B, T, D) as its encoder gives them.
        pooled: (B, F) what its head reads of them.
    """
    usual, *others = feature_sizes(model.config)
    match usual:
        case "projection":
            computed = [model.head(pooled)]
        case "token+dist" if model.head_dist is not None:
            computed = [(pooled + tokens[:, 1]) / 2]
        case _:
            computed = [pooled]
    patches = tokens[:, model.config.num_prefix_tokens :]
    for name in others:
        match name:
            case "token":
                computed.append(tokens[:, 0])
            case "map":
                assert model.attn_pool is not None
                computed.append(model.attn_pool(patches))
            case _:
                computed.append(patches.mean(dim=1))
    return torch.cat(computed, dim=1)

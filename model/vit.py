"""The Vision Transformer, read top to bottom in the order of the data.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929. Modules carry timm's names, so that
published state dicts load with no remapping.

Shapes: B batch, C channels, H W image, P patch, N patches, T tokens, D embed_dim, h heads, d = D / h, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention_pool import AttentionPool
from model.config import Activation, Resampling, ViTConfig
from model.patch_embedding import PatchEmbed
from model.relative_positions import RelativePositions
from model.rotary_positions import RotaryPositions

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class VisionTransformer(nn.Module):
    """Patch embedding, prefix tokens and position embedding, encoder blocks, final norm, pooling, head.

    An encoder without classes gives features, (B, F), wherever logits (B, K) are said below.

    It is meant to be filled from a checkpoint: new embeddings are zero.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embed = PatchEmbed(config.num_channels, config.patch_size, width, bias=not config.pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, width)) if config.reg_tokens else None
        embedded = config.num_pos_embed_prefix_tokens + config.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, embedded, width)) if config.pos_embed_coverage != "none" else None
        self.norm_pre = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.depth)))
        norm, fc_norm = config.final_norm and not config.fc_norm, config.final_norm and config.fc_norm
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if norm else nn.Identity()
        self.attn_pool = _attention_pool(config) if config.pooling == "map" or config.attention_pool else None
        self.fc_norm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps) if fc_norm else nn.Identity()
        self.head = _head(config)
        self.head_dist = nn.Linear(config.head_dim, config.num_classes) if config.head_dist else None

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images: (B, C, H, W) -> logits (B, K)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode normalised images: (B, C, H, W) -> tokens after the final norm (B, T, D), the class token first."""
        x = self.blocks(self.embed(images))  # (B, T, D)
        return self.norm(x)

    def embed(self, images: Tensor) -> Tensor:
        """Cut images into patches, and embed these with their positions: (B, C, H, W) -> (B, T, D)."""
        patches = self.patch_embed(images)  # (B, N, D)
        return self.norm_pre(self.embed_positions(patches))

    def embed_positions(self, patches: Tensor) -> Tensor:
        """Prepend the prefix tokens and add the position embedding: (B, N, D) -> (B, T, D)."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens if token is not None]  # (1, n, D) -> (B, n, D)
        if self.pos_embed is None:
            return torch.cat((*prefix, patches), dim=1)
        match self.config.pos_embed_coverage:
            case "all":
                return torch.cat((*prefix, patches), dim=1) + self.pos_embed
            case "class+patches":
                *first, registers = prefix
                x = torch.cat((*first, patches), dim=1) + self.pos_embed
                return torch.cat((x[:, : len(first)], registers, x[:, len(first) :]), dim=1)
            case _:  # patches
                return torch.cat((*prefix, patches + self.pos_embed), dim=1)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Pool the encoder's output and classify it: (B, T, D) -> logits (B, K)."""
        return self.classify(self.fc_norm(self.pool(tokens)), tokens)

    def classify(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Classify what was pooled from the tokens: features (B, F), tokens (B, T, D) -> logits (B, K)."""
        logits: Tensor = self.head(features)
        if self.head_dist is None:
            return logits
        return (logits + self.head_dist(tokens[:, 1])) / 2

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens for the head: (B, T, D) -> (B, D), or (B, 2 D) where class token and mean are concatenated."""
        cls_token, patches = tokens[:, 0], tokens[:, self.config.num_prefix_tokens :]
        match self.config.pooling:
            case "token":
                return cls_token
            case "avg":
                return patches.mean(dim=1)
            case "token+dist":
                return (cls_token + tokens[:, 1]) / 2
            case "token+avg":
                return torch.cat((cls_token, patches.mean(dim=1)), dim=1)
            case "map":
                assert self.attn_pool is not None
                pooled: Tensor = self.attn_pool(patches)
                return pooled


class EncoderBlock(nn.Module):
    """Pre-norm self-attention, then a pre-norm MLP, each added to its input: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = SwiGlu(config) if config.swiglu else Mlp(config.embed_dim, config.mlp_dim, config.activation)
        self.ls2 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, with one matrix for queries, keys and values: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.rel_pos = RelativePositions(config.grid_size, heads) if config.relative_positions else None
        self.rope = _rotary_positions(config) if config.rope is not None else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, bias = self.project(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values with positions, and a bias: (B, T, D) -> three (B, h, T, d), (h, T, T)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, h, T, d)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        return q, k, v, None if self.rel_pos is None else self.rel_pos()

    def merge(self, heads: Tensor) -> Tensor:
        """Join the outputs of all heads, and project them: (B, h, T, d) -> (B, T, D)."""
        projected: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an activation between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, embed_dim: int, mlp_dim: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGlu(nn.Module):
    """A gated MLP: one half of the first layer, activated, multiplies the other: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, 2 * config.mlp_dim)
        self.norm = nn.LayerNorm(config.mlp_dim, eps=config.layer_norm_eps) if config.mlp_norm else nn.Identity()
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.norm(self.activation(gate) * value))


def _head(config: ViTConfig) -> nn.Module:
    if config.num_classes:
        return nn.Linear(config.head_dim, config.num_classes)
    return nn.Linear(config.head_dim, config.projection_dim, bias=False) if config.projection_dim else nn.Identity()


def _rotary_positions(config: ViTConfig) -> RotaryPositions:
    assert config.rope is not None
    head_dim = config.embed_dim // config.num_heads
    return RotaryPositions(config.rope, config.grid_size, head_dim, config.num_prefix_tokens, config.rope_theta)


def _attention_pool(config: ViTConfig) -> AttentionPool:
    mlp = Mlp(config.embed_dim, config.mlp_dim, config.activation)
    return AttentionPool(config.embed_dim, config.num_heads, config.layer_norm_eps, mlp)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, embed_dim: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def resample_position_embedding(
    pos_embed: Tensor, grid_size: int, *, num_prefix: int = 1, resampling: Resampling = "antialias"
) -> Tensor:
    """Interpolate the patches' position embedding (bicubic) to another square grid: (1, n + N, D) -> (1, n + g*g, D).

    Args:
        pos_embed: for `num_prefix` tokens and a square grid of patches.
        grid_size: g, patches along one side.
        num_prefix: n, leading tokens, which are left unchanged.
        resampling: variant of the interpolation; libraries differ.

    Raises:
        ValueError: the number of patches is not a square.
    """
    num_patches, width = pos_embed.shape[1] - num_prefix, pos_embed.shape[2]
    old_size = int(max(0, num_patches) ** 0.5)
    if old_size**2 != num_patches:
        raise ValueError(f"a position embedding of {num_patches} patches is not a square grid")
    if old_size == grid_size:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    grid = patches.float().view(1, old_size, old_size, width).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(
        grid,
        size=(grid_size, grid_size),
        mode="bicubic",
        antialias=resampling == "antialias",
        align_corners=resampling == "align_corners",
    )
    patches = grid.permute(0, 2, 3, 1).reshape(1, grid_size**2, width)  # (1, g*g, D)
    return torch.cat((prefix, patches.to(pos_embed.dtype)), dim=1)

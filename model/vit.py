"""The Vision Transformer, read top to bottom in the order of the data.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929. Modules carry timm's names, so that
published state dicts load with no remapping.

Shapes: B batch, C channels, H W image, P patch, N patches, T = N + 1 tokens, D embed_dim, h heads, d = D / h, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ViTConfig
from model.patch_embedding import PatchEmbed


class VisionTransformer(nn.Module):
    """Patch embedding, class token and position embedding, encoder blocks, final norm, head.

    Meant to be filled from a checkpoint: the embeddings of a new one are zero.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.num_channels, config.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim))
        self.blocks = nn.Sequential(*(EncoderBlock(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.head_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images: (B, C, H, W) -> logits (B, K)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Encode normalised images: (B, C, H, W) -> tokens after the final norm (B, T, D), the class token first."""
        x = self.patch_embed(images)  # (B, N, D)
        cls_token = self.cls_token.expand(x.shape[0], -1, -1)  # (1, 1, D) -> (B, 1, D)
        x = torch.cat((cls_token, x), dim=1) + self.pos_embed  # (B, T, D)
        x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Pool the encoder's output and classify it: (B, T, D) -> logits (B, K)."""
        return self.head(self.pool(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """What the head reads: (B, T, D) -> (B, D), or (B, 2 D) where the class token and the mean stand side by side."""
        cls_token, patches = tokens[:, 0], tokens[:, 1:]
        match self.config.pooling:
            case "token":
                return cls_token
            case "avg":
                return patches.mean(dim=1)
            case "token+avg":
                return torch.cat((cls_token, patches.mean(dim=1)), dim=1)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention, then a pre-norm MLP, each added to what came in: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config.embed_dim, config.num_heads, config.qkv_bias)
        self.ls1 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.embed_dim, config.mlp_dim)
        self.ls2 = LayerScale(config.embed_dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, with one matrix for queries, keys and values."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, h, T, d)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))  # (B, h, T, d) -> (B, T, D)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, embed_dim: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def resample_position_embedding(pos_embed: Tensor, grid_size: int, *, antialias: bool = True) -> Tensor:
    """Interpolate the patches' position embedding (bicubic) to another square grid: (1, 1 + n*n, D) -> (1, 1 + g*g, D).

    The class token's own embedding, which stands first, has no place in the image and stays as it is.
    """
    num_patches, width = pos_embed.shape[1] - 1, pos_embed.shape[2]
    old_size = int(num_patches**0.5)
    if old_size**2 != num_patches:
        raise ValueError(f"a position embedding of {num_patches} patches is not a square grid with a class token before it")
    if old_size == grid_size:
        return pos_embed
    cls_token, patches = pos_embed[:, :1], pos_embed[:, 1:]
    grid = patches.float().view(1, old_size, old_size, width).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", antialias=antialias)
    patches = grid.permute(0, 2, 3, 1).reshape(1, grid_size**2, width)  # (1, g*g, D)
    return torch.cat((cls_token, patches.to(pos_embed.dtype)), dim=1)

"""Attention pooling of SigLIP: one learned query attends to all patches.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", https://arxiv.org/abs/2303.15343; the head ("MAP") is that of Zhai
et al., "Scaling Vision Transformers", https://arxiv.org/abs/2106.04560. Modules carry timm's names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Pools tokens by attention, and adds an MLP: (B, T, D) -> (B, D).

    Args:
        embed_dim: D.
        num_heads: heads of the attention.
        layer_norm_eps: epsilon of the norm before the MLP.
        mlp: (B, 1, D) -> (B, 1, D).
    """

    def __init__(self, embed_dim: int, num_heads: int, layer_norm_eps: float, mlp: nn.Module) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.mlp = mlp

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.project(tokens)
        return self.merge(F.scaled_dot_product_attention(q, k, v))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query, keys and values of each head: (B, T, D) -> (B, h, 1, d), two (B, h, T, d)."""
        batch, count, width = tokens.shape
        heads, size = self.num_heads, width // self.num_heads
        q = self.q(self.latent).view(1, 1, heads, size).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = self.kv(tokens).view(batch, count, 2, heads, size).permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Join the outputs of all heads, and add the MLP: (B, h, 1, d) -> (B, D)."""
        x = self.proj(heads.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]

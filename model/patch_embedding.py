"""Patch embedding: an image becomes a sequence of patch tokens. One map, seen in two equal ways.

Shapes: B batch, C channels, H W image, P patch, N = (H // P) * (W // P) patches, D embed_dim.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed_by_unfolding(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cut the image into patches, lay each one flat, and multiply it by one matrix: (B, C, H, W) -> (B, N, D).

    `weight` is the convolution's kernel, (D, C, P, P): its rows laid flat are the matrix's columns.
    """
    patch_size = weight.shape[-1]
    patches = F.unfold(images, kernel_size=patch_size, stride=patch_size)  # (B, C*P*P, N)
    return F.linear(patches.transpose(1, 2), weight.flatten(1), bias)  # (B, N, C*P*P) -> (B, N, D)


def embed_by_convolution(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with a stride of one patch, so that every patch is seen once: (B, C, H, W) -> (B, N, D)."""
    patch_size = weight.shape[-1]
    feature_map = F.conv2d(images, weight, bias, stride=patch_size)  # (B, D, H//P, W//P)
    return feature_map.flatten(2).transpose(1, 2)  # (B, D, N) -> (B, N, D)


class PatchEmbed(nn.Module):
    """The learned patch embedding: images (B, C, H, W) -> patch tokens (B, N, D)."""

    def __init__(self, num_channels: int, patch_size: int, embed_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return embed_by_convolution(images, self.proj.weight, self.proj.bias)

    @torch.no_grad()
    def fold_normalization(self, scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> "PatchEmbed":
        """Return a patch embedding that maps raw pixels x to what this one maps (x * scale - mean) / std to.

        The map is linear and has no padding, so this is exact but for rounding; it is computed in float64. uint8 pixels then
        need only a cast, and no normalised image is ever made.

        Args:
            scale: factor for raw pixels, 1/255 for uint8.
            mean: per channel, in units of scaled pixels.
            std: per channel, in units of scaled pixels.
        """
        weight = self.proj.weight.double()  # (D, C, P, P)
        per_channel = weight.new_tensor(std).view(1, -1, 1, 1)
        offset = weight.new_tensor(mean).view(1, -1, 1, 1) / per_channel
        bias = torch.zeros(weight.shape[0], dtype=weight.dtype) if self.proj.bias is None else self.proj.bias.double()
        bias = bias - (weight * offset).sum(dim=(1, 2, 3))
        folded = copy.deepcopy(self)
        folded.proj.weight.copy_(weight * scale / per_channel)
        folded.proj.bias = nn.Parameter(bias.to(folded.proj.weight))
        return folded

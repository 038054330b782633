"""Rotary position embedding of DINOv3, along both axes of the grid of patches.

Siméoni et al., "DINOv3", https://arxiv.org/abs/2508.10104, after Su et al., "RoFormer", https://arxiv.org/abs/2104.09864.
"""

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Rotates the queries or keys of patches by angles that grow along both axes; other tokens stay as they are.

    Args:
        grid_size: patches along one side.
        head_dim: d, width of a head, a multiple of 4.
        num_prefix_tokens: tokens before the patches.
        theta: base of the periods.
    """

    def __init__(self, grid_size: int, head_dim: int, num_prefix_tokens: int, theta: float) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        angles = _angles(grid_size, head_dim, theta)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, h, T, d)."""
        prefix, patches = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        first, second = patches.chunk(2, dim=-1)
        rotated = patches * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return torch.cat((prefix, rotated), dim=2)


def _angles(grid_size: int, head_dim: int, theta: float) -> Tensor:
    """Angle of each patch and channel, (N, d); on the CPU, also while a model is built without weights."""
    frequencies = 1 / theta ** torch.arange(0, 1, 4 / head_dim, device="cpu")  # (d / 4,)
    centres = 2 * (torch.arange(grid_size, device="cpu") + 0.5) / grid_size - 1  # of the patches, from -1 to 1
    positions = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).view(-1, 2, 1)  # (N, 2, 1)
    return (2 * torch.pi * positions * frequencies).flatten(1).tile(2)  # (N, 2, d / 4) -> (N, d)

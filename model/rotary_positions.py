"""Rotary position embeddings of DINOv3 and EVA-02, along both axes of the grid of patches.

Siméoni et al., "DINOv3", https://arxiv.org/abs/2508.10104, and Fang et al., "EVA-02", https://arxiv.org/abs/2303.11331, after
Su et al., "RoFormer", https://arxiv.org/abs/2104.09864.
"""

from typing import Literal

import torch
from torch import Tensor, nn

RotaryKind = Literal["dinov3", "eva02"]
"""DINOv3 rotates channel i with channel i + d / 2, by angles of the position in the image; EVA-02 rotates neighbouring
channels, by angles of the position on a grid of 16 x 16."""

_EVA02_GRID = 16
_THETAS: dict[RotaryKind, float] = {"dinov3": 100.0, "eva02": 10_000.0}


class RotaryPositions(nn.Module):
    """Rotates the queries or keys of patches by angles that grow along both axes; other tokens stay as they are.

    Args:
        kind: which channels are rotated together, by which angles.
        grid_size: patches along one side.
        head_dim: d, width of a head, a multiple of 4.
        num_prefix_tokens: tokens before the patches.
        theta: base of the periods; None for that of the kind.
    """

    def __init__(
        self, kind: RotaryKind, grid_size: int, head_dim: int, num_prefix_tokens: int, theta: float | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_prefix_tokens = num_prefix_tokens
        angles = _angles(kind, grid_size, head_dim, theta or _THETAS[kind])
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, h, T, d)."""
        prefix, patches = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        if self.kind == "dinov3":
            first, second = patches.chunk(2, dim=-1)
            turned = torch.cat((-second, first), dim=-1)
        else:
            turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), dim=-1).flatten(-2)
        return torch.cat((prefix, patches * self.cos + turned * self.sin), dim=2)


def _angles(kind: RotaryKind, grid_size: int, head_dim: int, theta: float) -> Tensor:
    """Angle of each patch and channel, (N, d); on the CPU, also while a model is built without weights."""
    frequencies = 1 / theta ** torch.arange(0, 1, 4 / head_dim, device="cpu")  # (d / 4,)
    steps = torch.arange(grid_size, device="cpu")
    centres = 2 * torch.pi * (2 * (steps + 0.5) / grid_size - 1)  # of the patches, from -2 pi to 2 pi
    axis = centres if kind == "dinov3" else steps * _EVA02_GRID / grid_size
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2, 1)  # (N, 2, 1)
    angles = (positions * frequencies).flatten(1)  # (N, 2, d / 4) -> (N, d / 2)
    return angles.tile(2) if kind == "dinov3" else angles.repeat_interleave(2, dim=1)

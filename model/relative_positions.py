"""Relative position bias of BEiT: a learned number for each head and each offset between two tokens.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", https://arxiv.org/abs/2106.08254; the table is that of Swin
Transformer, https://arxiv.org/abs/2103.14030.
"""

import torch
from torch import Tensor, nn


class RelativePositions(nn.Module):
    """Bias of the attention scores of one block.

    The table has a row for each offset (rows, columns) between two patches of a g x g grid, and three more: from the class
    token to a patch, from a patch to the class token, and from the class token to itself.

    Args:
        grid_size: g, patches along one side.
        num_heads: h.
    """

    def __init__(self, grid_size: int, num_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * grid_size - 1) ** 2 + 3, num_heads))
        self.register_buffer("index", _rows(grid_size), persistent=False)
        self.index: Tensor

    def forward(self) -> Tensor:
        """Return the bias of all pairs of tokens, (h, T, T), the class token first."""
        return self.table[self.index].permute(2, 0, 1)


def _rows(grid_size: int) -> Tensor:
    """Row of the table for each pair of tokens, (T, T); on the CPU, also while a model is built without weights."""
    offsets = 2 * grid_size - 1
    axis = torch.arange(grid_size, device="cpu")
    rows, columns = (coordinate.flatten() for coordinate in torch.meshgrid(axis, axis, indexing="ij"))
    index = torch.full((grid_size**2 + 1, grid_size**2 + 1), offsets**2, device="cpu")  # from the class token to a patch
    index[1:, 1:] = (rows[:, None] - rows + grid_size - 1) * offsets + columns[:, None] - columns + grid_size - 1
    index[1:, 0] = offsets**2 + 1
    index[0, 0] = offsets**2 + 2
    return index

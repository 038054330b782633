"""Modules that compute what the model's do, faster on a GPU in half precision.

The activation of an MLP runs in the epilogue of its first GEMM, and the patch embedding is one GEMM instead of a convolution
with two changes of layout (benchmarks/README.md has what each gains).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.patch_embedding import PatchEmbed
from model.vit import Mlp, VisionTransformer

_ALIGNMENT = 8
"""Elements in 16 bytes of half precision. A GEMM is several times slower if its rows are not a multiple of it."""


def replace_modules(model: VisionTransformer) -> None:
    """Replace modules of a model in half precision, in place."""
    model.patch_embed = GemmPatchEmbed(model.patch_embed)  # type: ignore[assignment]  # the same inputs and outputs
    for block in model.blocks:
        mlp = block.mlp
        if isinstance(mlp, Mlp) and model.config.activation in ("gelu", "gelu_tanh"):
            block.mlp = GeluMlp(mlp)


class GemmPatchEmbed(nn.Module):
    """Patch embedding as one matrix product: images (B, C, H, W) -> patch tokens (B, N, D)."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        weight = embed.proj.weight  # (D, C, P, P)
        self.patch_size = weight.shape[-1]
        self.padding = -weight[0].numel() % _ALIGNMENT
        self.weight = nn.Parameter(F.pad(weight.flatten(1), (0, self.padding)), requires_grad=False)
        self.bias = embed.proj.bias

    def forward(self, images: Tensor) -> Tensor:
        size = self.patch_size
        windows = images.unfold(2, size, size).unfold(3, size, size)  # (B, C, H/P, W/P, P, P), a view
        patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, N, C*P*P)
        if self.padding:
            patches = F.pad(patches, (0, self.padding))
        return F.linear(patches, self.weight, self.bias)


class GeluMlp(nn.Module):
    """Two linear layers with GELU between them: (B, T, D) -> (B, T, D).

    The GEMM's epilogue has only the tanh approximation of GELU. It is at most 5e-4 away from the exact one, less than half
    precision rounds.
    """

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = _linear_gelu(x, self.fc1.weight, self.fc1.bias)
        return self.fc2(hidden)  # type: ignore[no-any-return]  # torch types the call of a module as Any


@torch.library.custom_op("vit_serve::linear_gelu", mutates_args=())  # torch.compile would take it apart again
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.view(*x.shape[:-1], weight.shape[0])


@_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])

"""PixelModel: the module that engines run, from raw pixels to float32 logits."""

import copy

import torch
from torch import Tensor, nn

from model.config import ViTConfig
from model.preprocessing import Preprocessing
from model.vit import VisionTransformer


class PixelModel(nn.Module):
    """Raw pixels (B, 3, H, W) uint8 -> logits (B, K) float32, computed in the dtype of the weights.

    Normalisation is folded into a copy of the patch embedding, so no normalised image is ever made: uint8 pixels need only a
    cast, which is exact in every dtype, bfloat16 included.

    All other weights share the memory of `model`, which stays as it is: a conversion to another dtype or device allocates new
    memory for this module alone.
    """

    def __init__(self, model: VisionTransformer, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.vit = _sharing_weights(model)
        self.vit.patch_embed = model.patch_embed.fold_normalization(preprocessing.scale, preprocessing.mean, preprocessing.std)
        self.eval().requires_grad_(False)

    @property
    def config(self) -> ViTConfig:
        return self.vit.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.config.num_channels, self.config.image_size, self.config.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.vit(pixels.to(self.dtype))
        return logits.float()

    def reference(self, pixels: Tensor) -> tuple[Tensor, float]:
        """Return logits to compare an engine with, and the size that differences are relative to.

        The size is the largest logit. But the logits of a few classes can all be near 0 by chance; then it is the size of the
        head's output for random features of the same norm.
        """
        tokens = self.vit.forward_features(pixels.to(self.dtype))
        features = self.vit.fc_norm(self.vit.pool(tokens)).float()
        logits = self.vit.forward_head(tokens).float()
        size = logits.abs().max()
        if isinstance(self.vit.head, nn.Linear):
            size = torch.maximum(size, self.vit.head.weight.float().norm(dim=1).max() * features.square().mean().sqrt())
        return logits, float(size)


def _sharing_weights(model: VisionTransformer) -> VisionTransformer:
    """Copy the modules, with new parameters over the same memory."""
    shared = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def parse_dtype(name: str) -> torch.dtype:
    """Return torch's `float32`, `bfloat16` or `float16`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype

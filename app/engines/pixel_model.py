"""PixelModel: the model as engines run it, from raw pixels to float32 logits."""

import torch
from torch import Tensor, nn

from model.config import ViTConfig
from model.preprocessing import Preprocessing
from model.vit import VisionTransformer


class PixelModel(nn.Module):
    """Raw pixels (B, 3, H, W) uint8 -> logits (B, K) float32, computed in the dtype of the weights.

    Takes the model over: its patch embedding absorbs the normalisation, so that no normalised image is ever made. Whole
    numbers up to 255 are exact in every dtype, bfloat16 included.
    """

    def __init__(self, model: VisionTransformer, preprocessing: Preprocessing) -> None:
        super().__init__()
        model.patch_embed.absorb_normalisation(preprocessing.scale, preprocessing.mean, preprocessing.std)
        self.vit = model
        self.eval().requires_grad_(False)

    @property
    def config(self) -> ViTConfig:
        return self.vit.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.config.num_channels, self.config.image_size, self.config.image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.vit(pixels.to(self.vit.head.weight.dtype))
        return logits.float()

    def reference(self, pixels: Tensor) -> tuple[Tensor, float]:
        """Logits to compare others with, and the size by which differences are judged.

        That is the largest logit; but those of a few classes can all be near 0 by chance, and then it is what the head makes
        of features as large in another direction.
        """
        weight = self.vit.head.weight.float()
        tokens = self.vit.forward_features(pixels.to(self.vit.head.weight.dtype))
        features = self.vit.fc_norm(self.vit.pool(tokens)).float()
        logits = self.vit.forward_head(tokens).float()
        by_chance = weight.norm(dim=1).max() * features.square().mean().sqrt()
        return logits, float(torch.maximum(logits.abs().max(), by_chance))


def parse_dtype(name: str) -> torch.dtype:
    """`float32`, `bfloat16` or `float16` as torch's."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype

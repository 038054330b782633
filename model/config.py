"""ViTConfig: every size that shapes a Vision Transformer, checked once."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["token", "avg", "token+avg"]
"""What the head reads: the class token, the mean of the patch tokens, or both side by side (as DINOv2 classifiers do)."""


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Sizes of a plain (pre-norm) Vision Transformer, as in Dosovitskiy et al., https://arxiv.org/abs/2010.11929, table 1.

    Raises:
        ValueError: sizes that contradict each other; the message names the field.
    """

    num_classes: int
    image_size: int = 224
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a square patch, in pixels."""
    num_channels: int = 3
    embed_dim: int = 768
    depth: int = 12
    """Number of encoder blocks."""
    num_heads: int = 12
    mlp_dim: int = 3072
    """Width of the hidden layer of each block's MLP."""
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    layer_scale: bool = False
    """Whether each residual branch is multiplied by a learned vector (Touvron et al., https://arxiv.org/abs/2103.17239)."""
    pooling: Pooling = "token"

    def __post_init__(self) -> None:
        for name in (
            "num_classes",
            "image_size",
            "patch_size",
            "num_channels",
            "embed_dim",
            "depth",
            "num_heads",
            "mlp_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")

    @property
    def grid_size(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are not seen, as in a strided convolution."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return self.num_patches + 1

    @property
    def head_dim(self) -> int:
        """Width of what the head reads."""
        return self.embed_dim * (2 if self.pooling == "token+avg" else 1)


TINY = ViTConfig(num_classes=10, image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=64)
"""A size for tests: real in every part, and fast."""

"""ViTConfig: every size and choice that shapes a Vision Transformer, checked once."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["token", "avg", "token+avg"]
"""What the head reads: the class token, the mean of the patch tokens, or both side by side (as DINOv2 classifiers do)."""

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
"""Of each block's MLP; `gelu` is the exact one (erf)."""


Embedded = Literal["all", "class+patches", "patches"]
"""Which tokens the position embedding covers: all, all but registers (as DINOv2 with registers), the patches alone."""


Resampling = Literal["plain", "smooth", "aligned"]
"""How a position embedding is interpolated (bicubic) to another grid: as it is, smoothed where the grid shrinks (timm, and
DINOv2 with registers), or with the corners of the two grids on one another (torchvision)."""

MAX_CLASSES = 1_000_000

_LARGEST = 1_000_000
"""Of any size; more is a slip, and would overflow in places that say less clearly what is wrong."""

_MOST = {"image_size": 4096, "embed_dim": 65_536, "depth": 1000, "num_heads": 65_536, "reg_tokens": 1000, "num_tokens": 100_000}
"""Ten times and more what any published model has. More would take minutes, or all memory, before the tensors that are there
tell that it is a slip."""


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Sizes and choices of a plain (pre-norm) Vision Transformer.

    The sizes are those of Dosovitskiy et al., https://arxiv.org/abs/2010.11929, table 1. The choices are the ways in which
    published models differ; each carries timm's name where timm has one.

    Raises:
        ValueError: values that contradict each other; the message names the field.
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
    """Width of the hidden layer of each block's MLP, after the gate where there is one."""
    activation: Activation = "gelu"
    swiglu: bool = False
    """Whether the MLP is gated (Shazeer, https://arxiv.org/abs/2002.05202), as in DINOv2's giant."""
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    layer_scale: bool = False
    """Whether each residual branch is multiplied by a learned vector (Touvron et al., https://arxiv.org/abs/2103.17239)."""
    class_token: bool = True
    dist_token: bool = False
    """Whether a distillation token follows the class token (Touvron et al., https://arxiv.org/abs/2012.12877)."""
    head_dist: bool = False
    """Whether the distillation token has a head of its own; the two heads' logits are averaged."""
    reg_tokens: int = 0
    """Register tokens between the class token and the patches (Darcet et al., https://arxiv.org/abs/2309.16588)."""
    embedded: Embedded = "all"
    pre_norm: bool = False
    """Whether the tokens are normalised before the first block, as in CLIP."""
    pooling: Pooling = "token"
    fc_norm: bool = False
    """Whether the final norm follows the pooling (as in MAE fine-tunes), instead of preceding it."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "image_size", "patch_size", "num_channels", "embed_dim", "depth", "num_heads", "mlp_dim"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} must be between 1 and {_LARGEST}, not {getattr(self, name)}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} {getattr(self, name)} is more than any model has; up to {most} are supported")
        if self.reg_tokens < 0:
            raise ValueError(f"reg_tokens must not be less than 0, but is {self.reg_tokens}")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if "token" in self.pooling and not self.class_token:
            raise ValueError(f"pooling {self.pooling!r} needs a class token")
        if not 0 < self.layer_norm_eps < 1:  # also refuses NaN
            raise ValueError(f"layer_norm_eps must be between 0 and 1, not {self.layer_norm_eps}")
        if self.head_dist and not self.dist_token:
            raise ValueError("a distillation head needs a distillation token")

    @property
    def grid_size(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are not seen, as in a strided convolution."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation and register tokens."""
        return self.class_token + self.dist_token + self.reg_tokens

    @property
    def num_embedded_prefix_tokens(self) -> int:
        """Those of them that the position embedding covers."""
        match self.embedded:
            case "all":
                return self.num_prefix_tokens
            case "class+patches":
                return self.num_prefix_tokens - self.reg_tokens
            case "patches":
                return 0

    @property
    def num_tokens(self) -> int:
        """What the encoder sees: the patches and the tokens before them."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def head_dim(self) -> int:
        """Width of what the head reads."""
        return self.embed_dim * (2 if self.pooling == "token+avg" else 1)

    @property
    def flops(self) -> int:
        """Floating-point operations to classify one image: two for each multiply-add of a matrix product, nothing else."""
        tokens, width = self.num_tokens, self.embed_dim
        patch_embedding = self.num_patches * self.patch_size**2 * self.num_channels * width
        projections = tokens * 4 * width**2  # queries, keys, values, output
        attention = 2 * tokens**2 * width  # scores, and the weighted sum of values
        mlp = tokens * (3 if self.swiglu else 2) * width * self.mlp_dim
        head = (1 + self.head_dist) * self.head_dim * self.num_classes
        return 2 * (patch_embedding + self.depth * (projections + attention + mlp) + head)


TINY = ViTConfig(num_classes=10, image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=64)
"""A size for tests: real in every part, and fast."""

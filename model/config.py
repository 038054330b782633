"""ViTConfig: every size and option of a Vision Transformer, validated once."""

from dataclasses import dataclass
from typing import Literal

from model.rotary_positions import RotaryKind

Pooling = Literal["token", "avg", "token+avg", "token+dist", "map"]
"""Input of the head: the class token, the mean of the patch tokens, both concatenated (as in DINOv2 classifiers), the mean of
class and distillation token (in timm's distilled encoders without heads), or attention pooling (as in SigLIP)."""

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
"""Activation of each block's MLP; `gelu` is exact (erf)."""

PosEmbedCoverage = Literal["all", "class+patches", "patches", "none"]
"""Tokens with a learned position embedding: all, all but registers (as in DINOv2 with registers), patches alone, or none."""

Resampling = Literal["bicubic", "antialias", "align_corners"]
"""Interpolation of a position embedding to another grid, always bicubic: plain, antialiased where the grid shrinks (timm, and
DINOv2 with registers), or with aligned corners (torchvision)."""

MAX_CLASSES = 1_000_000

_MAX_SIZE = 1_000_000
"""Maximum of any size: a larger one is a mistake, and would only overflow later, with a less clear message."""

_MAX_SIZES = {
    "image_size": 4096,
    "embed_dim": 65_536,
    "depth": 1000,
    "num_heads": 65_536,
    "reg_tokens": 1000,
    "num_tokens": 100_000,
}
"""Maximum per field, ten times and more what any published model has. More would take minutes, or all memory, before the
checkpoint's tensors show the mistake."""


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Sizes and options of a plain (pre-norm) Vision Transformer.

    The sizes are those of Dosovitskiy et al., https://arxiv.org/abs/2010.11929, table 1. The options are the ways in which
    published models differ, with timm's names where timm has one.

    Raises:
        ValueError: values contradict each other; the message names the field.
    """

    num_classes: int
    """0 for an encoder without a classifier: its output is what it pools."""
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
    """Gated MLP (Shazeer, https://arxiv.org/abs/2002.05202), as in DINOv2's giant."""
    mlp_norm: bool = False
    """A norm before the last layer of a gated MLP, as in EVA-02."""
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    layer_scale: bool = False
    """Each residual branch multiplied by a learned vector (Touvron et al., https://arxiv.org/abs/2103.17239)."""
    class_token: bool = True
    dist_token: bool = False
    """A distillation token after the class token (Touvron et al., https://arxiv.org/abs/2012.12877)."""
    head_dist: bool = False
    """A second head for the distillation token; the logits of both are averaged."""
    reg_tokens: int = 0
    """Register tokens between the class token and the patches (Darcet et al., https://arxiv.org/abs/2309.16588)."""
    pos_embed_coverage: PosEmbedCoverage = "all"
    relative_positions: bool = False
    """A learned bias of the attention scores in each block (`relative_positions.py`), as in BEiT."""
    rope: RotaryKind | None = None
    """Rotary position embedding (`rotary_positions.py`), as in DINOv3 and EVA-02; None for none."""
    rope_theta: float | None = None
    """Base of its periods; None for that of its kind."""
    pre_norm: bool = False
    """A norm before the first block, as in CLIP."""
    final_norm: bool = True
    """A norm after the last block, or after pooling; CLIP's classifiers in transformers have none."""
    pooling: Pooling = "token"
    attention_pool: bool = False
    """Attention pooling beside that of the head, for features alone: SigLIP's classifiers have its weights too."""
    projection_dim: int = 0
    """Width of a linear layer without bias after pooling, in an encoder that has one (CLIP); 0 for none."""
    fc_norm: bool = False
    """The final norm after pooling (as in MAE fine-tunes), instead of before."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_classes <= _MAX_SIZE:
            raise ValueError(f"num_classes must be between 0 and {_MAX_SIZE}, not {self.num_classes}")
        for name in ("image_size", "patch_size", "num_channels", "embed_dim", "depth", "num_heads", "mlp_dim"):
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} must be between 1 and {_MAX_SIZE}, not {getattr(self, name)}")
        for name, maximum in _MAX_SIZES.items():
            if getattr(self, name) > maximum:
                raise ValueError(f"{name} {getattr(self, name)} is more than any model has; up to {maximum} are supported")
        if self.reg_tokens < 0:
            raise ValueError(f"reg_tokens must not be less than 0, but is {self.reg_tokens}")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.rope is not None and self.embed_dim // self.num_heads % 4:
            raise ValueError("a rotary position embedding needs heads whose width is a multiple of 4")
        if self.rope_theta is not None and not self.rope_theta > 0:
            raise ValueError(f"rope_theta must be greater than 0, not {self.rope_theta}")
        if self.relative_positions and (self.num_prefix_tokens != 1 or not self.class_token):
            raise ValueError("relative positions need a class token, and no other token beside the patches")
        if "token" in self.pooling and not self.class_token:
            raise ValueError(f"pooling {self.pooling!r} needs a class token")
        if not 0 < self.layer_norm_eps < 1:  # also refuses NaN
            raise ValueError(f"layer_norm_eps must be between 0 and 1, not {self.layer_norm_eps}")
        if (self.head_dist or self.pooling == "token+dist") and not self.dist_token:
            raise ValueError("a distillation head needs a distillation token")

    @property
    def grid_size(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are dropped, as in a strided convolution."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation and register tokens."""
        return self.class_token + self.dist_token + self.reg_tokens

    @property
    def num_pos_embed_prefix_tokens(self) -> int:
        """Prefix tokens that have a position embedding."""
        match self.pos_embed_coverage:
            case "all":
                return self.num_prefix_tokens
            case "class+patches":
                return self.num_prefix_tokens - self.reg_tokens
            case "patches" | "none":
                return 0

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's input: prefix tokens and patches."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def head_dim(self) -> int:
        """Width of the head's input."""
        return self.embed_dim * (2 if self.pooling == "token+avg" else 1)

    @property
    def output_dim(self) -> int:
        """Numbers that the model gives for an image: logits, or features if there are no classes."""
        return self.num_classes or self.projection_dim or self.head_dim

    @property
    def flops(self) -> int:
        """Floating-point operations per image: two for each multiply-add of a matrix product, nothing else."""
        tokens, width = self.num_tokens, self.embed_dim
        patch_embedding = self.num_patches * self.patch_size**2 * self.num_channels * width
        projections = tokens * 4 * width**2  # queries, keys, values, output
        attention = 2 * tokens**2 * width  # scores, and the weighted sum of values
        mlp = tokens * (3 if self.swiglu else 2) * width * self.mlp_dim
        head = (1 + self.head_dist) * self.head_dim * (self.num_classes or self.projection_dim)
        return 2 * (patch_embedding + self.depth * (projections + attention + mlp) + head)


TINY = ViTConfig(num_classes=10, image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=64)
"""A small, fast configuration for tests."""

"""Names of timm's architectures, which give the sizes of a model and some of its options."""

import re
from dataclasses import dataclass

from model.config import Activation
from model.rotary_positions import RotaryKind

SIZES = {
    # name: embed_dim, depth, num_heads, mlp_dim (timm, vision_transformer.py, deit.py, beit.py and eva.py)
    "tiny": (192, 12, 3, 768),
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "little": (320, 14, 5, 1792),
    "small": (384, 12, 6, 1536),
    "small_plus": (384, 12, 6, 1536),
    "small_36x1": (384, 36, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base": (768, 12, 12, 3072),
    "base_plus": (896, 12, 14, 3584),
    "base_gap": (768, 12, 16, 3072),
    "so150m": (896, 18, 14, 2304),
    "so150m2": (832, 21, 13, 2176),
    "large": (1024, 24, 16, 4096),
    "intern300m": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "huge_plus": (1280, 32, 20, 5120),
    "giant": (1408, 40, 16, 6144),
    "giant_dinov2": (1536, 40, 24, 4096),
    "giantopt": (1536, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
    "7b": (4096, 40, 32, 8192),
    "eva02_tiny": (192, 12, 3, 512),
    "eva02_small": (384, 12, 6, 1024),
    "eva02_base": (768, 12, 12, 2048),
    "eva02_large": (1024, 24, 16, 2730),
}

_NAME = re.compile(
    r"(?P<family>vit|deit|deit3|eva|eva02|beit|beitv2)_(?P<size>7b|[a-z]+(?:\d+m2?)?)(?P<plus>_plus)?(?:_distilled)?_patch(?P<patch>\d+)"
    r"(?P<choices>(?:_(?:clip|quickgelu|plus|gap|map|reg\d+|dinov[23]|qkvb|siglip|36x1))*)(?:_(?P<image>\d+))?(?P<miil>_miil)?"
)
"""`vit_base_patch16_clip_quickgelu_224`, `deit_tiny_distilled_patch16_224`, `vit_small_patch14_reg4_dinov2`, ..."""

_FLEXIVIT = re.compile(r"flexivit_(?P<size>small|base|large)")

_EVA_SIZES = ("large",)  # the other ones have another architecture
_EVA02_SIZES = tuple(name for name in SIZES if name.startswith("eva02"))
_BEIT_SIZES = ("base", "large")

_GELU_TANH = re.compile(
    r"vit_(so400m_patch16|giantopt_patch16|base_patch32)_siglip_(gap_)?\d+|vit_large_patch16_siglip_(gap_)?512"
)
"""SigLIP models of the second version, except those whose weights were also published by the first."""

SUPPORTED = (
    "vit_<size>_patch<P>_[clip_][siglip_][gap_][reg<N>_]<pixels>, vit_<size>_patch14_[reg4_]dinov2, vit_<size>_patch16_dinov3, "
    "deit_*, deit3_*, beit_*, beitv2_*, eva_large_*, eva02_<size>_patch14_<pixels>, flexivit_*"
)


@dataclass(frozen=True, slots=True)
class TimmName:
    """Parts of an architecture's name."""

    family: str
    """`vit`, `deit`, `deit3`, `eva`, `eva02`, `beit`, `beitv2` or `flexivit`."""
    size: str
    """Key of `SIZES`."""
    patch_size: int
    choices: frozenset[str]
    image_size: int
    activation: Activation

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """embed_dim, depth, num_heads and mlp_dim."""
        return SIZES[self.size]

    @property
    def dinov3(self) -> bool:
        """True for DINOv3."""
        return "dinov3" in self.choices

    @property
    def rope(self) -> RotaryKind | None:
        """Kind of rotary positions; None for none."""
        return "dinov3" if self.dinov3 else "eva02" if self.family == "eva02" else None

    @property
    def relative_positions(self) -> bool:
        """True for BEiT."""
        return self.family in ("beit", "beitv2")

    @property
    def swiglu(self) -> bool:
        """True for a gated MLP."""
        return self.size in ("giant_dinov2", "small_plus", "huge_plus", "7b") or self.family == "eva02"

    @property
    def separate_projections(self) -> bool:
        """True for the larger EVA-02: queries, keys and values by layers of their own, and a norm within the MLP."""
        return self.size in ("eva02_base", "eva02_large")

    @property
    def layer_norm_eps(self) -> float:
        return 1e-5 if self.choices & {"clip", "dinov3"} else 1e-6

    @property
    def plain_mean(self) -> bool:
        """True if it pools by the mean of normalised patches, as the `gap` ones without registers and DINOv3 do."""
        return self.dinov3 or ("gap" in self.choices and not _registers(self.choices)) or self.size == "so150m"


def parse(architecture: str) -> TimmName:
    """Read the name of an architecture that is supported, with a tag or without.

    Raises:
        ValueError: it is another.
    """
    name = architecture.partition(".")[0]  # what follows the dot names the training, not the architecture
    if flexible := _FLEXIVIT.fullmatch(name):
        return TimmName("flexivit", flexible["size"], 16, frozenset(), 240, "gelu")
    match = _NAME.fullmatch(name)
    if match is None:
        raise _unsupported(architecture)
    choices = frozenset(match["choices"].split("_")[1:])
    size = _size_of(match["size"], choices | ({"plus"} if match["plus"] else set()))
    size = f"eva02_{size}" if match["family"] == "eva02" and "clip" not in choices else size
    fits = {"eva": _EVA_SIZES, "eva02": _EVA02_SIZES, "beit": _BEIT_SIZES, "beitv2": _BEIT_SIZES}
    if size not in fits.get(match["family"], SIZES) or ("map" in choices and size != "so150m"):
        raise _unsupported(architecture)
    found = TimmName(match["family"], size, int(match["patch"]), choices, _image_size(match["image"], choices), "gelu")
    return TimmName(found.family, size, found.patch_size, choices, found.image_size, _activation(name, found))


def is_supported(architecture: str) -> bool:
    """Return True if models of this name, with a tag or without, are supported."""
    try:
        parse(architecture)
    except ValueError:
        return False
    return True


def _unsupported(architecture: str) -> ValueError:
    return ValueError(f"timm architecture {architecture!r} is not supported; supported are {SUPPORTED}")


def _registers(choices: frozenset[str]) -> bool:
    return any(choice.startswith("reg") for choice in choices)


def _size_of(size: str, choices: frozenset[str]) -> str:
    """A few choices come with sizes of their own; `gap` does only in the older models, without registers and SigLIP."""
    own = (f"{size}_{choice}" for choice in choices if choice != "gap" or not (_registers(choices) or "siglip" in choices))
    return next((name for name in own if name in SIZES), size)


def _image_size(written: str | None, choices: frozenset[str]) -> int:
    if written:
        return int(written)
    return 518 if "dinov2" in choices else 256 if "dinov3" in choices else 224


def _activation(name: str, parsed: TimmName) -> Activation:
    if parsed.swiglu:
        return "silu"
    if _GELU_TANH.fullmatch(name):
        return "gelu_tanh"
    return "quick_gelu" if "quickgelu" in parsed.choices else "gelu"

"""Formats: their names, their decoders, and the sentence for an image in one that is not decoded."""

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

from PIL import features

from app.errors import StartError

_NEVER_DECODED = {
    "bigtiff": "BigTIFF images",
    "jpeg2000": "JPEG 2000 images",
    "jpegxl": "JPEG XL images",
    "pdf": "PDF documents",
    "svg": "SVG drawings",
}
"""Names of formats that are recognized and never decoded."""

_INSTALL_HEIF = "pip install 'vit-serve[heif]'"


def refusal(image_format: str | None, enabled: Iterable[str]) -> str:
    """Return the sentence that says why a format is not decoded, and what to do."""
    send = f"send one of: {', '.join(sorted(enabled))}"
    if image_format is None:
        return f"The bytes are no image of a known format; {send}."
    if image_format in _NEVER_DECODED:
        return f"{_NEVER_DECODED[image_format]} are not decoded here; {send}."
    enabling = f"VIT_IMAGE_FORMATS={','.join([*sorted(enabled), image_format])}"
    if image_format == "heic":
        enabling += f", after {_INSTALL_HEIF}"
    return f"{image_format} images are not enabled here; {send}. The service's operator can enable them: {enabling}."


def check_decoders(formats: Iterable[str]) -> None:
    """Check that each format has a decoder, without loading those that are off by default.

    Raises:
        StartError: a decoder is not installed.
    """
    if "avif" in formats and not features.check("avif"):
        raise StartError("VIT_IMAGE_FORMATS has avif, which this build of Pillow cannot decode: install one of its wheels")
    if "heic" in formats and find_spec("pillow_heif") is None:
        raise StartError(f"VIT_IMAGE_FORMATS has heic, which needs pillow-heif: {_INSTALL_HEIF}")


@cache
def pillow_name(image_format: str) -> str:
    """Load the decoder of a format, with as few threads as it can do with, and return Pillow's name of the format."""
    if image_format == "avif":
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    elif image_format == "heic":
        import pillow_heif

        pillow_heif.register_heif_opener(decode_threads=0, thumbnails=False, depth_images=False, aux_images=False)
        return "HEIF"
    return image_format.upper()


def needs_threads(formats: Iterable[str]) -> bool:
    """Return True if a decoder needs a thread of its own: libde265 starts one for each tile in any case."""
    return "heic" in formats

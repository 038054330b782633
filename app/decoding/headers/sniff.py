"""Format of an image by its first bytes; names and declared content types count for nothing."""

import re

from app.decoding.headers import isobmff

_SIGNATURES = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF.{4}WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c](?:\0\0\0|\0{0,2}\Z)",
    "isobmff": rb".{4}ftyp",
    "tiff": rb"II\*\0|MM\0\*",
    "bigtiff": rb"II\+\0|MM\0\+",
    "jpeg2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "jpegxl": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
    "pdf": rb"%PDF-",
    "svg": rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!(?:DOCTYPE svg|--)[^>]{0,400}>\s*){0,4}<svg[\s/>]",
}
"""Patterns of the first bytes, the first match counts."""

_SIGNATURE = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), pattern) for name, pattern in _SIGNATURES.items()), re.DOTALL)

_MAX_SIGNATURE = 2000
"""Bytes that are looked at; an SVG may begin with comments."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1"})
"""Brands of a container of either kind; one of its compatible brands names the coding."""


def sniff_format(image_bytes: bytes) -> str | None:
    """Return the name of the format, which may be one that is never decoded; None if it is unknown."""
    match = _SIGNATURE.match(image_bytes, 0, _MAX_SIGNATURE)
    if match is None:
        return None
    return _sniff_isobmff(image_bytes) if match.lastgroup == "isobmff" else match.lastgroup


def _sniff_isobmff(image_bytes: bytes) -> str | None:
    major, *compatible = isobmff.brands(image_bytes)
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and not _AVIF_BRANDS.isdisjoint(compatible)):
        return "avif"
    if major in _HEIC_BRANDS or (major in _HEIF_BRANDS and not _HEIC_BRANDS.isdisjoint(compatible)):
        return "heic"
    return None

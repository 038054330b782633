"""Facts on an encoded picture that are read before anything is decoded: its format, its scans, its size, its chunks.

Pillow reads headers in Python, byte by byte, and unpacks every colour profile; these walks are short, and bounded in steps.
"""

import re
from collections.abc import Iterator
from typing import Literal

from app.decoding.geometry import Size
from app.decoding.headers import av1, hevc, isobmff
from app.decoding.headers.bits import Frame, largest
from app.decoding.headers.tiff import tiff_size
from app.errors import UndecodableImage

_MAX_JPEG_SCANS = 100
"""A progressive JPEG of a camera or an editor has about 10 scans; each costs a pass over the whole image."""

_MAX_SCANS_OF_LARGEST = 20
"""Scans of a picture with as many pixels as are allowed. A smaller one may have more: what counts is the work."""

_MAX_JPEG_SEGMENTS = 10_000

_MAX_JPEG_PADDING = 65_536
"""Bytes between the segments before the first scan, where none belong but a few 0xFF."""

_MAX_GIF_BLOCKS_BEFORE_FRAME = 100
"""Extensions before the first frame, and the blocks of one; only a long comment or XMP has more."""

_SHORTEST_GIF_EXTENSION = {0xFE: 0, 0xFF: 2}
"""Blocks of a comment and of an application's extension; the others have at least one."""

_MAX_PNG_CHUNKS = 10_000
"""Encoders write 8 KiB or more of pixels in a chunk."""

_MAX_SEGMENTS_BEFORE_SIZE = 200
"""A photograph has about 10, with a large colour profile or EXIF's extensions a few tens."""

_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]", flags=re.DOTALL)
"""A marker that is followed by a length, or the end of the image; not what stands within a scan's data."""

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segment that has the size: SOF0 to SOF15, without DHT, JPG and DAC."""

_BMP_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TIFF = (b"II*\0", b"MM\0*")
_BIGTIFF = (b"II+\0", b"MM\0+")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEG_XL = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")
_SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!(?:DOCTYPE svg|--)[^>]{0,400}>\s*){0,4}<svg[\s/>]")
_MAX_SVG_PROLOG = 2000

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1"})
"""Of a file that says only among its further brands how its pictures are encoded."""


def sniff_format(image_bytes: bytes) -> str | None:
    """The format that the first bytes tell, or None; also some that are never decoded."""
    if image_bytes.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if image_bytes.startswith(_PNG_SIGNATURE):
        return "png"
    if image_bytes[:4] == b"RIFF" and image_bytes[8:12] == b"WEBP":
        return "webp"
    if image_bytes.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if image_bytes.startswith(b"BM") and int.from_bytes(image_bytes[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    if image_bytes[4:8] == b"ftyp":
        return _sniff_isobmff(image_bytes)
    if image_bytes.startswith(_TIFF):
        return "tiff"
    return _sniff_undecoded(image_bytes)


def _sniff_isobmff(image_bytes: bytes) -> str | None:
    major, *compatible = isobmff.brands(image_bytes)
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and not _AVIF_BRANDS.isdisjoint(compatible)):
        return "avif"
    if major in _HEIC_BRANDS or (major in _HEIF_BRANDS and not _HEIC_BRANDS.isdisjoint(compatible)):
        return "heic"
    return None


def _sniff_undecoded(image_bytes: bytes) -> str | None:
    if image_bytes.startswith(_BIGTIFF):
        return "bigtiff"
    if image_bytes.startswith(_JPEG2000):
        return "jpeg2000"
    if image_bytes.startswith(_JPEG_XL):
        return "jpegxl"
    if image_bytes.startswith(b"%PDF-"):
        return "pdf"
    return "svg" if _SVG.match(image_bytes, 0, _MAX_SVG_PROLOG) else None


def count_pixels(image_bytes: bytes) -> int | None:
    """Count width times height as the header has them, in a few microseconds and without a decoder.

    A decoder may read a broken header otherwise: good for sharing work out, not for a limit.

    Returns:
        The pixels; 0 for what no decoder will take for an image, None where the size is not where it should be.
    """
    match sniff_format(image_bytes):
        case None | "bigtiff" | "jpeg2000" | "jpegxl" | "pdf" | "svg":
            return 0
        case "jpeg":
            return _jpeg_pixels(image_bytes)
        case "webp":
            size = webp_size(image_bytes)
        case "png":
            at_its_place = image_bytes[12:16] == b"IHDR" and len(image_bytes) >= 24
            size = (_number(image_bytes[16:20], "big"), _number(image_bytes[20:24], "big")) if at_its_place else None
        case "gif":
            size = _gif_size(image_bytes)
        case "avif" | "heic":
            found, certain = _largest_in_isobmff(image_bytes)
            size = found if certain else None
        case "tiff":
            size = tiff_size(image_bytes)
        case _:
            wide = 2 if image_bytes[14] == 12 else 4
            width, height = image_bytes[18 : 18 + wide], image_bytes[18 + wide : 18 + 2 * wide]
            upside_down = height[3:] == b"\xff"  # a negative height; Pillow takes other high ones for positive
            size = (_number(width), abs(int.from_bytes(height, "little", signed=upside_down)))
    return None if size is None else size[0] * size[1]


def _number(field: bytes, order: Literal["little", "big"] = "little") -> int:
    return int.from_bytes(field, order)


def _jpeg_pixels(jpeg: bytes) -> int | None:
    """Walk to the frame's header: ITU-T T.81, B.2.2."""
    position, padding = 2, _MAX_JPEG_PADDING
    for _ in range(_MAX_SEGMENTS_BEFORE_SIZE):
        marker = _JPEG_MARKER.search(jpeg, position, position + padding)
        if marker is None:
            return 0
        padding -= marker.start() - position
        start = marker.end()
        if marker[0][1] in _JPEG_FRAMES:
            return _number(jpeg[start + 3 : start + 5], "big") * _number(jpeg[start + 5 : start + 7], "big")
        position = start + max(2, _number(jpeg[start : start + 2], "big"))
    return None


def _gif_size(gif: bytes) -> Size | None:
    """Walk to the first frame (GIF89a, 20): it may be larger than the screen, which Pillow then enlarges."""
    palette = 3 << (gif[10] % 8 + 1) if gif[10:11] >= b"\x80" else 0
    position = 13 + palette
    for _ in range(_MAX_GIF_BLOCKS_BEFORE_FRAME):
        match gif[position : position + 1]:
            case b",":
                left, top, width, height = (_number(gif[at : at + 2]) for at in range(position + 1, position + 9, 2))
                return max(_number(gif[6:8]), left + width), max(_number(gif[8:10]), top + height)
            case b"!":
                end = _gif_extension_end(gif, position)
                if end is None:
                    return None
                position = end
            case b"" | b";":
                return 0, 0
            case _:
                position += 1
    return None


def _gif_extension_end(gif: bytes, start: int) -> int | None:
    """Return where an extension ends, or None if it is too long, or so short that decoders disagree on its end."""
    position = start + 2
    for blocks in range(_MAX_GIF_BLOCKS_BEFORE_FRAME):
        length = gif[position : position + 1]
        if length in (b"", b"\0"):
            return position + 1 if blocks >= _SHORTEST_GIF_EXTENSION.get(gif[start + 1], 1) else None
        position += 1 + length[0]
    return None


def count_jpeg_scans(jpeg: bytes) -> int:
    """Walk from marker to marker up to the end of the image, and count the scans; what is behind it is nobody's business.

    ITU-T T.81, annex B: a marker is 0xFF and a byte that is neither 0x00 nor 0xFF; all but a few are followed by a length.

    Raises:
        UndecodableImage: more scans or segments, or more between them, than an honest picture has.
    """
    position, scans, padding = 2, 0, 0
    for _ in range(_MAX_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(jpeg, position)
        if marker is None or marker[0] == b"\xff\xd9":
            return scans
        padding += 0 if scans else marker.start() - position
        if padding > _MAX_JPEG_PADDING:
            raise UndecodableImage(f"The JPEG has more than {_MAX_JPEG_PADDING} bytes between its segments.")
        scans += marker[0] == b"\xff\xda"
        if scans > _MAX_JPEG_SCANS:
            raise UndecodableImage(f"The JPEG has more than {_MAX_JPEG_SCANS} scans.")
        position = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big"))
    raise UndecodableImage(f"The JPEG has more than {_MAX_JPEG_SEGMENTS} segments.")


def check_jpeg_scans(scans: int, pixels: int, max_pixels: int) -> None:
    """Tell whether so many scans over so many pixels are more work than the largest picture may be.

    Raises:
        UndecodableImage: they are.
    """
    if scans > 1 and scans * pixels > _MAX_SCANS_OF_LARGEST * max_pixels:
        raise UndecodableImage(f"The JPEG has {scans} scans, too many for its size.")


def png_without_profiles(png: bytes) -> bytes:
    """The PNG without its colour profiles, of which Pillow would unpack every one, up to 1 MiB each.

    Texts stay, for one may hold the EXIF orientation; Pillow bounds what they unpack to.
    PNG specification (third edition), 5.3: a chunk is a length, a type of four letters, so many bytes, and a checksum.

    Raises:
        UndecodableImage: more chunks than an honest picture has.
    """
    kept: list[bytes] = []
    kept_up_to, position = 0, len(_PNG_SIGNATURE)
    for _ in range(_MAX_PNG_CHUNKS):
        kind = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if kind == b"iCCP":
            kept.append(png[kept_up_to:position])
            kept_up_to = end
        if kind == b"IEND" or end >= len(png):
            return b"".join([*kept, png[kept_up_to:]]) if kept else png
        position = end
    raise UndecodableImage(f"The PNG has more than {_MAX_PNG_CHUNKS} chunks.")


def webp_size(webp: bytes) -> Size | None:
    """Width and height by the first chunk of the file (RFC 9649, 2.5 to 2.7), or None if there are none."""
    header = webp[20:30]
    if len(header) < 10:
        return None
    match webp[12:16]:
        case b"VP8X":
            return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(header[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF
    return None


def isobmff_size(image_bytes: bytes) -> Size | None:
    """Width and height of the largest picture or frame in an AVIF or HEIC, as far as it says; None if it does not."""
    return _largest_in_isobmff(image_bytes)[0]


def _largest_in_isobmff(image_bytes: bytes) -> tuple[Size | None, bool]:
    """The size, and whether nothing larger can be decoded."""
    is_avif = sniff_format(image_bytes) == "avif"
    try:
        stated = isobmff.largest_size(image_bytes)
        coded = isobmff.coded_pictures(image_bytes, b"av01" if is_avif else b"hvc1")
    except isobmff.TooManyBoxes:
        return None, False
    if stated is None or coded is None:
        return stated, False
    frames = [Frame(stated, True), *(_av1_frames(coded) if is_avif else _hevc_frames(coded))]
    return largest(frames) or (stated, False)


_UNKNOWN = Frame((0, 0), False)


def _av1_frames(coded: isobmff.Coded) -> Iterator[Frame]:
    for item in coded.items:
        yield av1.largest_frame(item) or _UNKNOWN
    for track in coded.tracks:
        yield av1.largest_frame(track, only_first=True) or _UNKNOWN


def _hevc_frames(coded: isobmff.Coded) -> Iterator[Frame]:
    for configuration in coded.configurations:
        yield hevc.largest_in_configuration(configuration) or _UNKNOWN
    for item in coded.items:
        frame, complete = hevc.largest_in_units(item)
        if frame is not None:
            yield frame
        if not complete:
            yield _UNKNOWN
    if not coded.items:
        yield _UNKNOWN

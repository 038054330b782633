"""Chunks of a PNG (third edition, 5.3): a chunk is a length, a type of four letters, so many bytes, and a checksum."""

from app.decoding.size import Size
from app.errors import UndecodableImage

_FIRST_CHUNK = 8

_MAX_CHUNKS = 10_000
"""Maximum chunks of an image; encoders write 8 KiB or more of pixels in a chunk."""


def size(png: bytes) -> Size | None:
    """Read the size from the first chunk; None if that is not the header."""
    if png[12:16] != b"IHDR" or len(png) < 24:
        return None
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def without_profiles(png: bytes) -> bytes:
    """Cut out the colour profiles, of which Pillow would unpack every one, up to 1 MiB each.

    Texts stay, for one may hold the EXIF orientation; Pillow bounds the size that they unpack to.

    Raises:
        UndecodableImage: the PNG has more chunks than a real image.
    """
    kept: list[bytes] = []
    kept_up_to, position = 0, _FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        kind = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if kind == b"iCCP":
            kept.append(png[kept_up_to:position])
            kept_up_to = end
        if kind == b"IEND" or end >= len(png):
            return b"".join([*kept, png[kept_up_to:]]) if kept else png
        position = end
    raise UndecodableImage(f"The PNG has more than {_MAX_CHUNKS} chunks.")

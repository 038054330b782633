"""Size of a WebP (RFC 9649, 2.5 to 2.7)."""

from app.decoding.size import Size


def size(webp: bytes) -> Size | None:
    """Read the size from the first chunk; None if that has none."""
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

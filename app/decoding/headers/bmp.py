"""Size of a BMP."""

from app.decoding.size import Size


def size(bmp: bytes) -> Size:
    """Read the size as Pillow does: from the header that follows the file's 14 bytes."""
    wide = 2 if bmp[14] == 12 else 4
    width, height = bmp[18 : 18 + wide], bmp[18 + wide : 18 + 2 * wide]
    top_down = height[3:] == b"\xff"  # a negative height; Pillow takes other high ones for positive
    return int.from_bytes(width, "little"), abs(int.from_bytes(height, "little", signed=top_down))

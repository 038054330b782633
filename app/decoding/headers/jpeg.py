"""Segments of a JPEG: its size, and the scans that its decoder will have to make.

ITU-T T.81, annex B: a marker is 0xFF and a byte that is neither 0x00 nor 0xFF; all but a few are followed by a length.
"""

import re

from app.decoding.size import Size
from app.errors import UndecodableImage

_MAX_SCANS = 100
"""Maximum scans of any image, each a pass over all of it; a progressive JPEG of a camera or an editor has about 10."""

_MAX_SCANS_OF_LARGEST = 20
"""Maximum scans of an image with as many pixels as are allowed. A smaller one may have more, for the same work."""

_MAX_SEGMENTS = 10_000

_MAX_SEGMENTS_BEFORE_SIZE = 200
"""Segments that are walked to find the size; a photograph has about 10, and a few tens with a large profile or EXIF."""

_MAX_PADDING = 65_536
"""Maximum bytes between the segments before the first scan, where only a few 0xFF belong."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]", flags=re.DOTALL)
"""Marker with a length, or the end of the image; not the markers within a scan's data."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segment with the size: SOF0 to SOF15, without DHT, JPG and DAC."""

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"


def size(jpeg: bytes) -> Size | None:
    """Walk to the frame's header (B.2.2); (0, 0) if there is none, None if it is too far."""
    position, padding = 2, _MAX_PADDING
    for _ in range(_MAX_SEGMENTS_BEFORE_SIZE):
        marker = _MARKER.search(jpeg, position, position + padding)
        if marker is None:
            return 0, 0
        padding -= marker.start() - position
        start = marker.end()
        if marker[0][1] in _FRAMES:
            return _number(jpeg, start + 5), _number(jpeg, start + 3)
        position = start + max(2, _number(jpeg, start))
    return None


def count_scans(jpeg: bytes) -> int:
    """Walk from marker to marker up to the end of the image, and count the scans; trailing data is ignored.

    Raises:
        UndecodableImage: the JPEG has more scans or segments, or more between them, than a real image.
    """
    position, scans, padding = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(jpeg, position)
        if marker is None or marker[0] == _END:
            return scans
        padding += 0 if scans else marker.start() - position
        if padding > _MAX_PADDING:
            raise UndecodableImage(f"The JPEG has more than {_MAX_PADDING} bytes between its segments.")
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            raise UndecodableImage(f"The JPEG has more than {_MAX_SCANS} scans.")
        position = marker.end() + max(2, _number(jpeg, marker.end()))
    raise UndecodableImage(f"The JPEG has more than {_MAX_SEGMENTS} segments.")


def check_scans(scans: int, pixels: int, max_pixels: int) -> None:
    """Raise if so many scans over so many pixels are more work than the largest image may be.

    Raises:
        UndecodableImage: they are.
    """
    if scans > 1 and scans * pixels > _MAX_SCANS_OF_LARGEST * max_pixels:
        raise UndecodableImage(f"The JPEG has {scans} scans, too many for its size.")


def _number(jpeg: bytes, at: int) -> int:
    return int.from_bytes(jpeg[at : at + 2], "big")

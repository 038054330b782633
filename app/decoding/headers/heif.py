"""Size of an AVIF or HEIC: the largest that its container states or that its coded frames announce."""

from collections.abc import Iterator

from app.decoding.headers import av1, hevc, isobmff
from app.decoding.headers.bits import Frame, largest
from app.decoding.headers.sniff import sniff_format
from app.decoding.size import Size

_UNKNOWN = Frame((0, 0), False)


def largest_size(image_bytes: bytes) -> Size | None:
    """Return the size of the largest image or frame that is known; None if none is."""
    return _largest(image_bytes)[0]


def certain_size(image_bytes: bytes) -> Size | None:
    """Return the size of the largest image or frame; None if one of unknown size could be decoded."""
    size, certain = _largest(image_bytes)
    return size if certain else None


def _largest(image_bytes: bytes) -> tuple[Size | None, bool]:
    is_avif = sniff_format(image_bytes) == "avif"
    try:
        stated = isobmff.largest_size(image_bytes)
        coded = isobmff.coded_images(image_bytes, b"av01" if is_avif else b"hvc1")
    except isobmff.TooManyBoxes:
        return None, False
    if stated is None or coded is None:
        return stated, False
    frames = [Frame(stated, True), *(_av1_frames(coded) if is_avif else _hevc_frames(coded))]
    return largest(frames) or (stated, False)


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

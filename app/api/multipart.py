"""multipart/form-data (RFC 7578): the image parts of a body, collected while it arrives; nothing is written to disk."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.api.body import Hold, chunks, too_large
from app.errors import MalformedRequest

_OTHER_PARTS = 8
"""Parts that are no images and are passed over."""

_BOUNDARY_BYTES = 70
"""The longest boundary of RFC 2046, 5.1.1."""

_PART_HEADER_FIELDS = 8
"""Of one part; RFC 7578 knows three."""

_PART_HEADER_BYTES = 4096
"""Of one field of a part, with a file's name in it."""


@dataclass(slots=True)
class _ImageParts:
    """Collects the image parts of a multipart body while it is parsed, and nothing else."""

    names: frozenset[bytes]
    max_images: int
    max_image_bytes: int | None
    images: list[bytearray] = field(default_factory=list)
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _name: bytes | None = None
    _is_image: bool = False
    _others: int = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name = None

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name")
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        if self._name is None:
            raise MalformedRequest("A part of the multipart body has no name.")
        self._is_image = self._name in self.names
        if self._is_image and len(self.images) < self.max_images:
            self.images.append(bytearray())
        elif not self._is_image:
            self._others += 1
            if self._others > _OTHER_PARTS:
                raise MalformedRequest(f"The multipart body has more than {_OTHER_PARTS} parts that are no images.")
        else:
            self._is_image = False  # one too many already: enough to refuse, no need to keep it

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self.images[-1] += memoryview(data)[start:end]
            if self.max_image_bytes is not None and len(self.images[-1]) > self.max_image_bytes:
                raise too_large(self.max_image_bytes)

    def _end(self) -> None:
        self.ended = True


async def read_multipart(
    request: Request,
    hold: Hold,
    names: frozenset[bytes],
    max_bytes: int,
    max_image_bytes: int | None,
    max_images: int,
) -> list[bytes]:
    """The image parts of a multipart body, in the order sent; at most `max_images`, and nothing of other parts.

    Args:
        request: its body is read, as far as it is allowed.
        hold: what its bytes are accounted by.
        names: of parts that are images.
        max_bytes: of the whole body.
        max_image_bytes: of one image, if that is less.
        max_images: that are kept; one more than is taken is enough to refuse them.

    Raises:
        MalformedRequest: broken, cut off, nameless parts, or many that are no images.
        ImageTooLarge: more bytes than allowed; the rest of the body is not read.
        UnsupportedImageFormat: the body is compressed.
        QueueFull: by `hold`.
    """
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type of the multipart body has no boundary.")
    if len(boundary) > _BOUNDARY_BYTES:
        raise MalformedRequest(f"The boundary of the multipart body is longer than {_BOUNDARY_BYTES} bytes.")
    parts = _ImageParts(names, max_images, max_image_bytes)
    try:
        parser = MultipartParser(
            boundary, parts.callbacks(), max_header_count=_PART_HEADER_FIELDS, max_header_size=_PART_HEADER_BYTES
        )
        async for chunk in chunks(request, max_bytes, hold):
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedRequest("The multipart body is broken.") from error
    if not parts.ended:
        raise MalformedRequest("The multipart body ends before its closing boundary.")
    return [bytes(image) for image in parts.images]

"""ImageDecoder: encoded bytes to the pixels of the model's input, with every limit on what is decoded.

The bytes are not trusted: the first of them tell the format, the size is checked before a pixel is decoded, and only the first
frame and the EXIF orientation are read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import numpy as np
from PIL import Image

from app.decoding.formats import refusal
from app.decoding.geometry import Geometry
from app.decoding.headers import heif, png, tiff, webp
from app.decoding.headers.jpeg import check_scans, count_scans
from app.decoding.headers.sniff import sniff_format
from app.decoding.jpeg import decode_jpeg
from app.decoding.limits import check_length
from app.decoding.pillow import check_tiff_mode, open_image, orientation, upright_rgb
from app.decoding.size import Size, area
from app.errors import ImageTooLarge, UndecodableImage, UnsupportedImageFormat
from app.pixels import Pixels
from model.preprocessing import Preprocessing

_MAX_SIDE = 65_535
"""Maximum pixels of a side, as JPEG and GIF have it. Pillow allocates more for a row than a single pixel needs, so that an
image of 1 x 40,000,000 would take gigabytes."""

_LIES = 5
"""Least EXIF orientation of an image whose rows are stored as columns."""


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """Decodes and preprocesses one image at a time; may be called from many threads."""

    preprocessing: Preprocessing
    """Resize, crop and interpolation of the checkpoint."""
    _: KW_ONLY
    formats: frozenset[str]
    """Enabled formats, of `jpeg`, `png`, `webp`, `gif`, `bmp`, `avif`, `heic` and `tiff`."""
    max_bytes: int
    max_pixels: int
    exact: bool
    """Decode JPEGs to the bit as the checkpoint's library does, not the fast way."""
    scaled: bool = False
    """Permission for the fast way to decode large JPEGs at a fraction of their size."""

    def decode(self, image_bytes: bytes) -> Pixels:
        """Decode an image to (3, H, W) uint8, upright, resized and cropped.

        Raises:
            ImageTooLarge: more bytes or pixels than allowed; decided before decoding.
            UnsupportedImageFormat: no image, or a format that is not enabled.
            UndecodableImage: truncated or corrupt.
        """
        with self._opened(image_bytes) as (image, image_format):
            fast = image_format == "jpeg" and image.mode in ("RGB", "L") and not self.exact
            if fast and (pixels := self._decode_jpeg(image_bytes, image)) is not None:
                return pixels
            return _resize_and_crop(upright_rgb(image), self.preprocessing)

    def decode_whole(self, image_bytes: bytes) -> Image.Image:
        """Decode an image to RGB at its own size, upright; see `decode`."""
        with self._opened(image_bytes) as (image, _):
            return upright_rgb(image)

    def decode_to_show(self, image_bytes: bytes, enough: int) -> tuple[Image.Image, Size]:
        """Decode an image to RGB, upright, and return it with its own (width, height); see `decode`.

        A JPEG is decoded at a fraction of its size if its longer side keeps `enough` pixels, in a fraction of the time.
        """
        with self._opened(image_bytes) as (image, image_format):
            width, height = image.size
            if image_format == "jpeg":
                scale = enough / max(width, height)
                image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
            return upright_rgb(image), _upright((width, height), image, image_format)

    def upright_size(self, image_bytes: bytes) -> Size:
        """Return the (width, height) of an image that has been decoded before, turned upright; see `decode`."""
        with self._opened(image_bytes) as (image, image_format):
            return _upright(image.size, image, image_format)

    @contextmanager
    def _opened(self, image_bytes: bytes) -> Iterator[tuple[Image.Image, str]]:
        """Check all that can be known before decoding, and yield the image with the name of its format."""
        image_format = self._check_format(image_bytes)
        scans = 1
        match image_format:
            case "jpeg":
                scans = count_scans(image_bytes)
            case "png":
                image_bytes = png.without_profiles(image_bytes)
            case "webp":
                if (size := webp.size(image_bytes)) is not None:
                    self._check_size(size)  # Pillow allocates it before it tells the size
            case "avif" | "heic":
                self._check_stated(heif.largest_size(image_bytes))
            case "tiff":
                self._check_stated(tiff.size(image_bytes))
                tiff.check_kind(image_bytes)
        with open_image(image_bytes, image_format) as image:
            self._check_size(image.size)
            check_scans(scans, area(image.size), self.max_pixels)
            if image_format == "tiff":
                check_tiff_mode(image)
            yield image, image_format

    def _decode_jpeg(self, image_bytes: bytes, image: Image.Image) -> Pixels | None:
        return decode_jpeg(image_bytes, image.size, orientation(image), self.preprocessing, scaled=self.scaled)

    def _check_format(self, image_bytes: bytes) -> str:
        """Check the length and the format; return the name of the format."""
        check_length(image_bytes, self.max_bytes)
        image_format = sniff_format(image_bytes)
        if image_format not in self.formats:
            raise UnsupportedImageFormat(refusal(image_format, self.formats))
        return image_format

    def _check_stated(self, size: Size | None) -> None:
        """Check a size in a header, which may be that of a tile and so larger than the one that Pillow tells."""
        if size is None:
            raise UndecodableImage("The image does not say how large it is.")
        self._check_size(size)

    def _check_size(self, size: Size) -> None:
        width, height = size
        if width * height > self.max_pixels:
            raise ImageTooLarge(f"The image has {width} x {height} pixels; at most {self.max_pixels} are allowed.")
        if max(size) > _MAX_SIDE:
            raise ImageTooLarge(f"The image has {width} x {height} pixels; at most {_MAX_SIDE} on a side are allowed.")


def _upright(size: Size, image: Image.Image, image_format: str) -> Size:
    """Turn the size that Pillow tells of an opened image upright; that of a TIFF is."""
    width, height = size
    return (height, width) if image_format != "tiff" and orientation(image) >= _LIES else size


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """RGB image -> (3, H, W) uint8, to the pixel as transformers' processors do it (thin images: to one step of 255)."""
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    geometry = Geometry.of(image.size, preprocessing)
    if not geometry.is_wasteful:
        return geometry.crop(_channels_first(image.resize(geometry.full, resampling)))
    (width, height), (left, top) = geometry.kept, (geometry.left, geometry.top)  # resize only what the crop keeps
    x_scale, y_scale = image.width / geometry.full[0], image.height / geometry.full[1]
    right, bottom = min((left + width) * x_scale, image.width), min((top + height) * y_scale, image.height)
    kept = image.resize(geometry.kept, resampling, box=(left * x_scale, top * y_scale, right, bottom))
    return geometry.centre(_channels_first(kept))


def _channels_first(image: Image.Image) -> Pixels:
    return np.asarray(image).transpose(2, 0, 1)

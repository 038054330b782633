"""Encoded bytes -> pixels as the checkpoint's preprocessing wants them, with every limit on what is decoded.

Nothing here trusts the bytes: the format is told by its first bytes, the size is checked before a pixel is decoded, only the
first frame and of all metadata only the EXIF orientation is read.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from app.decoding.formats import pillow_name, refusal
from app.decoding.geometry import Geometry, Size
from app.decoding.headers import (
    check_jpeg_scans,
    count_jpeg_scans,
    isobmff_size,
    png_without_profiles,
    sniff_format,
    webp_size,
)
from app.decoding.headers.tiff import check_mode, check_tiff, tiff_size
from app.decoding.jpeg import decode_jpeg
from app.decoding.limits import check_length
from app.errors import ImageTooLarge, UndecodableImage, UnsupportedImageFormat
from app.pixels import Pixels
from model.preprocessing import Preprocessing

Image.MAX_IMAGE_PIXELS = None  # ours, which the settings give, is checked before decoding; Pillow's own would only warn
warnings.filterwarnings("ignore", module=r"PIL\.")  # of what is wrong with a caller's picture

_MAX_SIDE = 65_535
"""Pixels of a side: as much as JPEG and GIF can say. Pillow keeps more for each row than a row of one pixel holds, so that
a picture of 1 x 40,000,000 would take gigabytes."""

_STRIP_PIXELS = 1 << 20
"""Converted at once, so that a large picture is not in memory once for each step of its conversion."""

_EXIF_ORIENTATION = 0x0112

_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32, tag 274: how the stored image has to be turned to stand upright."""

_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}
"""Modes whose colours are stored multiplied by their alpha, and those that they are undone to."""


class ImageDecoder:
    """Decodes and preprocesses one image at a time; may be called from many threads.

    Args:
        preprocessing: resize, crop and interpolation of the checkpoint.
        formats: what is decoded, of `jpeg`, `png`, `webp`, `gif`, `bmp`, `avif`, `heic` and `tiff`.
        max_bytes: of the encoded image.
        max_pixels: width times height.
        exact: decode JPEGs to the bit as the checkpoint's library does, not the quick way.
        scaled: the quick way may decode large JPEGs at a part of their size.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        formats: frozenset[str],
        max_bytes: int,
        max_pixels: int,
        exact: bool,
        scaled: bool = False,
    ) -> None:
        self._preprocessing = preprocessing
        self._formats = formats
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._exact = exact
        self._scaled = scaled

    def decode(self, image_bytes: bytes) -> Pixels:
        """Encoded image -> (3, H, W) uint8, upright, resized and cropped.

        Raises:
            ImageTooLarge: more bytes or pixels than allowed; decided before decoding.
            UnsupportedImageFormat: no image, or a format that is not enabled.
            UndecodableImage: truncated or corrupt.
        """
        with self._opened(image_bytes) as (image, image_format):
            quick = image_format == "jpeg" and image.mode in ("RGB", "L") and not self._exact
            if quick and (pixels := self._decode_jpeg(image_bytes, image)) is not None:
                return pixels
            return _resize_and_crop(_whole(image), self._preprocessing)

    def decode_whole(self, image_bytes: bytes) -> Image.Image:
        """Decode an image to RGB at its own size, upright; see `decode`."""
        with self._opened(image_bytes) as (image, _):
            return _whole(image)

    @contextmanager
    def _opened(self, image_bytes: bytes) -> Iterator[tuple[Image.Image, str]]:
        """Check all that can be known before decoding, and give the image with the name of its format."""
        image_format = self._check(image_bytes)
        scans = 1
        if image_format == "jpeg":
            scans = count_jpeg_scans(image_bytes)
        elif image_format == "png":
            image_bytes = png_without_profiles(image_bytes)
        elif image_format == "webp" and (size := webp_size(image_bytes)) is not None:
            self._check_size(size)  # Pillow makes room for it before it tells how large it is
        elif image_format in ("avif", "heic"):
            self._check_stated(isobmff_size(image_bytes))
        elif image_format == "tiff":
            self._check_stated(tiff_size(image_bytes))
            check_tiff(image_bytes)
        with _open(image_bytes, image_format) as image:
            self._check_size(image.size)
            check_jpeg_scans(scans, image.width * image.height, self._max_pixels)
            if image_format == "avif":
                image.info.pop("xmp", None)  # only the container's own turns count (ISO/IEC 23008-12, 6.5.10)
            if image_format == "tiff":
                check_mode(image.mode)
            yield image, image_format

    def _decode_jpeg(self, image_bytes: bytes, image: Image.Image) -> Pixels | None:
        return decode_jpeg(image_bytes, image.size, _orientation(image), self._preprocessing, scaled=self._scaled)

    def _check(self, image_bytes: bytes) -> str:
        """What the number of the bytes and the first of them say; returns the format's name."""
        check_length(image_bytes, self._max_bytes)
        image_format = sniff_format(image_bytes)
        if image_format not in self._formats:
            raise UnsupportedImageFormat(refusal(image_format, self._formats))
        return image_format

    def _check_stated(self, size: Size | None) -> None:
        """Check what a header says, which may be of a tile and so more than Pillow tells."""
        if size is None:
            raise UndecodableImage("The image does not say how large it is.")
        self._check_size(size)

    def _check_size(self, size: Size) -> None:
        width, height = size
        if width * height > self._max_pixels:
            raise ImageTooLarge(f"The image has {width} x {height} pixels; at most {self._max_pixels} are allowed.")
        if max(size) > _MAX_SIDE:
            raise ImageTooLarge(f"The image has {width} x {height} pixels; at most {_MAX_SIDE} on a side are allowed.")


def _open(image_bytes: bytes, image_format: str) -> Image.Image:
    name = pillow_name(image_format)  # what is wrong with a decoder's installation is not the image's fault
    with _decoding_errors():
        return Image.open(io.BytesIO(image_bytes), formats=[name])


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """Turn whatever Pillow raises on hostile bytes into one sentence; to be put around its calls alone, not around our code."""
    try:
        yield
    except MemoryError:
        raise ImageTooLarge("The image does not fit into memory.") from None
    except Exception as error:
        raise UndecodableImage("The image is truncated or corrupt.") from error


def _whole(image: Image.Image) -> Image.Image:
    with _decoding_errors():
        image.load()  # before the metadata: PNG's getexif loads too, and its error would pass for broken EXIF
    return _to_rgb(_upright(image))


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken metadata says nothing about the pixels
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURN_UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    method = _TURN_UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: what is transparent becomes white, 16-bit grey is scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    converted = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_strip_to_rgb(strip), (0, top))
    return converted


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        grey = ((levels + 128) // 257).astype(np.uint8)
        if transparent is not None:
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in _STRAIGHT_ALPHA:
        image = _convert(image, _STRAIGHT_ALPHA[image.mode])
    if "A" in image.getbands() or transparent is not None:
        image = _convert(image, "RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return _convert(image, "RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    with _decoding_errors():  # Pillow looks into a palette and its transparency only here
        return image.convert(mode)


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """RGB image -> (3, H, W) uint8, to the pixel what transformers' processors give (a thin image: to one step of 255)."""
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    geometry = Geometry.of(image.size, preprocessing)
    if not geometry.is_wasteful:
        return geometry.crop(_channels_first(image.resize(geometry.full, resampling)))
    (width, height), (left, top) = geometry.kept, (geometry.left, geometry.top)  # only what is kept is resized
    x_scale, y_scale = image.width / geometry.full[0], image.height / geometry.full[1]
    right, bottom = min((left + width) * x_scale, image.width), min((top + height) * y_scale, image.height)
    kept = image.resize(geometry.kept, resampling, box=(left * x_scale, top * y_scale, right, bottom))
    return geometry.centre(_channels_first(kept))


def _channels_first(image: Image.Image) -> Pixels:
    return np.asarray(image).transpose(2, 0, 1)

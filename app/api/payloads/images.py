"""Read the encoded images of a request's body: multipart, raw, or base64 in JSON."""

from dataclasses import dataclass
from typing import Any

from app.api.payloads.base64_image import decode_image, decode_images
from app.api.payloads.body import Body, Image, empty_image
from app.api.payloads.json_object import read_json
from app.api.payloads.multipart import read_multipart
from app.errors import InvalidParameter, MalformedRequest, ServiceError

SINGLE_NAMES = frozenset({b"image", b"file", b"data"})
ANY_NAMES = SINGLE_NAMES | {b"body"}
"""Names of a part with an image in other protocols than the native one."""

_BATCH_NAMES = frozenset({b"images", *SINGLE_NAMES})

_FRAMING_BYTES = 64 * 1024
"""Maximum size of part headers, JSON punctuation and other fields beside the image."""

_OTHER_VALUES = 64
"""Maximum number of JSON values beside the images; they are ignored."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The limits of a body."""

    max_image_bytes: int
    max_request_bytes: int
    """Maximum size of a body with several images."""
    max_images: int
    """Maximum number of images in one body."""


async def read_image(body: Body, limits: BodyLimits, part_names: frozenset[bytes] = SINGLE_NAMES) -> bytes:
    """Read the one image of `POST /predict`: multipart, raw, or base64 in JSON.

    Args:
        body: the body.
        limits: its limits.
        part_names: names of a multipart part that is the image.

    Raises:
        MalformedRequest: a broken body, or not exactly one image in it.
        ImageTooLarge: more bytes than allowed; the rest of the body is not read.
        UnsupportedImageFormat: the body is compressed.
        QueueFull: all requests together hold too many bytes.
    """
    match body.media_type:
        case b"multipart/form-data":
            image = await _image_part(body, limits.max_image_bytes, part_names)
        case b"application/json":
            bound = _base64_length(limits.max_image_bytes) + _FRAMING_BYTES
            content = await read_json(body, bound, max_values(images=1))
            if "image" not in content:
                raise _no_image()
            image = await body.slices.work(decode_image(content["image"], limits.max_image_bytes))
        case _:
            image = await body.read(limits.max_image_bytes)
            if not image:
                raise _no_image()
    if not image:
        raise empty_image()
    return image


async def read_images(body: Body, limits: BodyLimits) -> list[Image]:
    """Read the images of `POST /predict/batch`, in order: multipart parts `images`, or base64 in JSON.

    An image that is too large, empty, or not base64 gives its error instead.

    Raises:
        MalformedRequest: a broken body, or no image in it.
        ImageTooLarge: a larger body than allowed; the rest of it is not read.
        InvalidParameter: more images than allowed; the rest of the body is not read.
        UnsupportedImageFormat: the body is compressed.
        QueueFull: all requests together hold too many bytes.
    """
    too_many = InvalidParameter(f"There are more than {limits.max_images} images in one request; send fewer at once.")
    match body.media_type:
        case b"multipart/form-data":
            images = await read_multipart(
                body, _BATCH_NAMES, limits.max_request_bytes, limits.max_images, limits.max_image_bytes, too_many
            )
        case b"application/json":
            content = await read_json(body, limits.max_request_bytes, max_values(limits.max_images))
            encoded = _list_of_images(content)
            if len(encoded) > limits.max_images:
                raise too_many
            images = await body.slices.work(decode_images(encoded, limits.max_image_bytes))
        case _:
            raise MalformedRequest("Send the images as multipart parts `images`, or as JSON with a list `images`.")
    if not images:
        raise MalformedRequest("There are no images: send them as multipart parts `images`, or as base64 in JSON.")
    return [empty_image() if image == b"" else image for image in images]


async def _image_part(body: Body, max_image_bytes: int, names: frozenset[bytes]) -> bytes:
    too_many = MalformedRequest("There is more than one image; send several to /predict/batch.")
    images = await read_multipart(body, names, max_image_bytes + _FRAMING_BYTES, 1, max_image_bytes, too_many)
    if not images:
        raise _no_image()
    if isinstance(images[0], ServiceError):
        raise images[0]
    return images[0]


def _list_of_images(content: dict[str, Any]) -> list[Any]:
    encoded = content.get("images", [])
    if not isinstance(encoded, list):
        raise MalformedRequest("`images` must be a list of base64 strings.")
    return encoded


def _no_image() -> MalformedRequest:
    return MalformedRequest("There is no image: send it as multipart part `image`, as the raw body, or as base64 in JSON.")


def max_values(images: int) -> int:
    """Return the maximum number of values in a JSON body with so many images."""
    return _OTHER_VALUES + 8 * images


def _base64_length(size: int) -> int:
    """Return the length of an image in base64, with line breaks and escaped slashes."""
    return (size + 2) // 3 * 4 * 17 // 16

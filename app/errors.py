"""What can go wrong, in words. Knows no HTTP: `api/problems.py` says which status each one gets.

StartError                    the service cannot start: a wrong setting, a checkpoint that cannot be served
ServiceError                  a request cannot be answered
├── Unauthorized              no valid API key
├── MalformedRequest          the body is not what it says it is, or holds no image
├── InvalidParameter          a parameter is out of its range
├── UrlTooLong                more bytes of URL than anybody needs
├── HeaderTooLarge            more header fields, or bytes of them, than anybody needs
├── RequestTooSlow            the request comes too slowly, or not at all
├── ImageTooLarge             too many bytes or pixels
├── UnsupportedImageFormat    no image, or a format that is not enabled
├── UndecodableImage          the right format, but truncated or corrupt
├── DeadlineExceeded          the answer would come too late
├── InferenceFailed           the model failed on this image
├── InternalError             the service failed on this image, through a fault of its own
└── Refused                   not now: the caller may try again
    ├── RateLimited           more requests than this caller may send
    ├── QueueFull             as many images wait as may wait
    ├── TooManyConnections    as many connections are busy as may be
    ├── NotReady              still loading, or the worker has died
    └── Draining              shutting down
OutOfMemory                   a batch did not fit on the device; the batcher splits it, no caller sees it
EngineDead                    the device cannot be used any more; the batcher stops, callers see NotReady
"""

import re
from typing import ClassVar

_MAX_SENTENCE = 2000
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


class StartError(Exception):
    """The service cannot start; the message is one sentence, on one line, for whoever starts it."""

    def __init__(self, message: str) -> None:
        line = _NO_TEXT.sub(" ", message)
        super().__init__(line if len(line) <= _MAX_SENTENCE else f"{line[:_MAX_SENTENCE]} ...")


class ServiceError(Exception):
    """A request cannot be answered. The message is written for the caller and holds nothing from inside."""

    code: ClassVar[str]
    """What went wrong, for programs; never changes its meaning."""


class Unauthorized(ServiceError):
    """No valid API key was sent."""

    code = "unauthorized"


class MalformedRequest(ServiceError):
    """The body is broken, empty, or holds no image."""

    code = "malformed_request"


class InvalidParameter(ServiceError):
    """A parameter is out of its range."""

    code = "invalid_parameter"


class UrlTooLong(ServiceError):
    """The URL is longer than is allowed."""

    code = "url_too_long"


class HeaderTooLarge(ServiceError):
    """The header has more fields or more bytes than is allowed."""

    code = "header_too_large"


class RequestTooSlow(ServiceError):
    """The request's header or body comes too slowly."""

    code = "request_too_slow"


class ImageTooLarge(ServiceError):
    """The image has more bytes or more pixels than is allowed."""

    code = "image_too_large"


class UnsupportedImageFormat(ServiceError):
    """The bytes are no image, or one of a format that is not enabled."""

    code = "unsupported_image_format"


class UndecodableImage(ServiceError):
    """The image is truncated or corrupt."""

    code = "undecodable_image"


class DeadlineExceeded(ServiceError):
    """The deadline passed before the answer was there."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The model failed on this image."""

    code = "inference_failed"


class InternalError(ServiceError):
    """The service failed on this image through a fault of its own, which has been logged."""

    code = "internal_error"


class Refused(ServiceError):
    """The request is refused for now."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When trying again makes sense, in seconds."""


class RateLimited(Refused):
    """The caller has sent as many requests as it may."""

    code = "rate_limited"


class QueueFull(Refused):
    """As many images wait as may wait."""

    code = "queue_full"


class TooManyConnections(Refused):
    """As many connections are busy as may be."""

    code = "too_many_connections"


class NotReady(Refused):
    """The model is still loading, or its worker has died."""

    code = "not_ready"


class Draining(Refused):
    """The service is shutting down."""

    code = "draining"


class OutOfMemory(Exception):
    """A batch did not fit into the device's memory; a smaller one may."""


class EngineDead(Exception):
    """The device cannot be used any more by this process."""

"""Exceptions of the service. `api/problems.py` maps each to an HTTP status.

StartError                    the service cannot start: a wrong setting, a checkpoint that cannot be served
ServiceError                  a request cannot be answered
├── Unauthorized              no valid API key
├── MalformedRequest          the body is not what it says it is, or holds no image
├── InvalidParameter          a parameter is out of its range
├── ModelNotFound             no model of this name or version is served
├── LoadFailed                a version of a model cannot be loaded
├── InsufficientMemory        models may not take as much memory as another one needs
├── NotAcceptable             the answer cannot be written as the client asks
├── UnsupportedMediaType      the body is of a media type that is not read
│   └── UnsupportedEncoding   the body is compressed in a way that is not read
├── NotSupported              a part of a protocol that is not offered here
├── UrlTooLong                the URL has too many bytes
├── HeaderTooLarge            too many header fields, or bytes of them
├── RequestTooSlow            the request arrives too slowly, or not at all
├── ImageTooLarge             too many bytes or pixels
├── UnsupportedImageFormat    not an image, or of a format that is not enabled
├── UndecodableImage          an enabled format, but truncated or corrupt
├── NoClasses                 the model is an encoder without a classifier
├── NoFeatures                the model gives no features
├── NoExplanation             the model is not explained
├── DeadlineExceeded          the answer would be too late
├── InferenceFailed           the model failed on this image
├── InternalError             the service failed on this image through a bug of its own
└── Refused                   refused for now: the client may retry
    ├── RateLimited           the client is over its rate limit
    ├── QueueFull             too many images or bytes are in flight
    ├── TooManyConnections    too many connections are busy
    ├── NotReady              still loading, or the worker has died
    └── Draining              shutting down
OutOfMemory                   a batch did not fit on the device; the batcher splits it, clients never see it
EngineDead                    the device cannot be used any more; the batcher stops, clients see NotReady
"""

import re
from typing import ClassVar, Self

_MAX_SENTENCE = 2000
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


class StartError(Exception):
    """The service cannot start. The message is one sentence on one line, for the operator."""

    def __init__(self, message: str) -> None:
        line = _NO_TEXT.sub(" ", message)
        super().__init__(line if len(line) <= _MAX_SENTENCE else f"{line[:_MAX_SENTENCE]} ...")


class ServiceError(Exception):
    """A request cannot be answered. The message is for the client and tells no internals."""

    code: ClassVar[str]
    """Stable identifier of the kind of error, for programs."""

    def at(self, place: str) -> Self:
        """Put the place in front of the message, such as the image of several that it is about."""
        self.args = (f"{place}: {self}",)
        return self


class Unauthorized(ServiceError):
    """No valid API key was sent."""

    code = "unauthorized"


class MalformedRequest(ServiceError):
    """The body is broken, empty, or holds no image."""

    code = "malformed_request"


class InvalidParameter(ServiceError):
    """A parameter is out of its range."""

    code = "invalid_parameter"


class ModelNotFound(ServiceError):
    """No model of this name or version is served."""

    code = "model_not_found"


class LoadFailed(ServiceError):
    """A version of a model cannot be loaded; the one before it, if any, still answers."""

    code = "load_failed"


class InsufficientMemory(ServiceError):
    """Models may not take as much memory together as another one needs."""

    code = "insufficient_memory"


class NotAcceptable(ServiceError):
    """The answer cannot be written in a media type that the client accepts."""

    code = "not_acceptable"


class UnsupportedMediaType(ServiceError):
    """The body is of a media type that is not read."""

    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """The body is compressed in a way that is not read."""


class NotSupported(ServiceError):
    """A part of a protocol that is not offered here."""

    code = "not_supported"


class UrlTooLong(ServiceError):
    """The URL is longer than allowed."""

    code = "url_too_long"


class HeaderTooLarge(ServiceError):
    """The header has more fields or bytes than allowed."""

    code = "header_too_large"


class RequestTooSlow(ServiceError):
    """The request's header or body arrives too slowly."""

    code = "request_too_slow"


class ImageTooLarge(ServiceError):
    """The image has more bytes or pixels than allowed."""

    code = "image_too_large"


class UnsupportedImageFormat(ServiceError):
    """The bytes are not an image, or one of a format that is not enabled."""

    code = "unsupported_image_format"


class UndecodableImage(ServiceError):
    """The image is truncated or corrupt."""

    code = "undecodable_image"


class NoClasses(ServiceError):
    """The model is an encoder without a classifier, so there are no classes to answer with."""

    code = "no_classes"


class NoFeatures(ServiceError):
    """The model gives no features: they are switched off, or its classifier reads no vector."""

    code = "no_features"


class NoExplanation(ServiceError):
    """The model is not explained: a library runs it, or explanations are switched off."""

    code = "no_explanation"


class DeadlineExceeded(ServiceError):
    """The deadline passed before the answer was ready."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The model failed on this image."""

    code = "inference_failed"


class InternalError(ServiceError):
    """The service failed on this image through a bug of its own, which was logged."""

    code = "internal_error"


class Refused(ServiceError):
    """The request is refused for now."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds after which to retry."""


class RateLimited(Refused):
    """The client is over its rate limit."""

    code = "rate_limited"


class QueueFull(Refused):
    """Too many images or bytes are in flight."""

    code = "queue_full"


class TooManyConnections(Refused):
    """Too many connections are busy."""

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

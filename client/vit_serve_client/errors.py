"""Errors of the client.

VitError                 the image was not classified
├── BadImage             empty, corrupt, or of a format that is not decoded
├── TooLarge             too many bytes or pixels
├── Unauthorized         no valid API key
├── RateLimited          this client is over its rate limit
├── Overloaded           too much is in flight, or too many connections are open
├── NotReady             the service is loading, or shutting down
├── Timeout              no answer within the deadline
└── ConnectionFailed     no connection, or one that broke
"""


class VitError(Exception):
    """An image was not classified, or the service cannot be asked. The message is a sentence."""

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        """HTTP status of the answer; None without one."""
        self.code = code
        """The service's stable name of this kind of error; None if the answer is not the service's."""
        self.request_id = request_id
        """Id of the request in the service's log."""
        self.retry_after = retry_after
        """Seconds after which the service asks to be tried again."""


class BadImage(VitError):
    """The image is empty, corrupt, cannot be read, or has a format that is not decoded."""


class TooLarge(VitError):
    """The image has more bytes or pixels than allowed."""


class Unauthorized(VitError):
    """No valid API key was sent."""


class RateLimited(VitError):
    """This client is over its rate limit."""


class Overloaded(VitError):
    """Too many images are in flight, or too many connections are open."""


class NotReady(VitError):
    """The service is loading its model, or shutting down."""


class Timeout(VitError):
    """There was no answer within the deadline."""


class ConnectionFailed(VitError):
    """No connection could be made, or it broke before the answer was complete."""


BY_CODE: dict[str, type[VitError]] = {
    "malformed_request": BadImage,  # the client writes all of a request but its images; an empty one is refused so
    "unsupported_image_format": BadImage,
    "undecodable_image": BadImage,
    "image_too_large": TooLarge,
    "unauthorized": Unauthorized,
    "rate_limited": RateLimited,
    "queue_full": Overloaded,
    "too_many_connections": Overloaded,
    "not_ready": NotReady,
    "draining": NotReady,
    "deadline_exceeded": Timeout,
    "request_too_slow": Timeout,
}
"""Errors by the `code` of a problem; any other code is a plain `VitError`."""

BY_STATUS: dict[int, type[VitError]] = {
    401: Unauthorized,
    408: Timeout,
    413: TooLarge,
    429: RateLimited,
    503: NotReady,
    504: Timeout,
}
"""Errors by the status of an answer that is not a problem, so of a proxy in between."""

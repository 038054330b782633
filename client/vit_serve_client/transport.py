"""Parts of a request over httpx2 that both clients share: its arguments, its errors, and the bounds of its answer."""

from http import HTTPStatus
from typing import Any

import httpx2

from vit_serve_client.answers import MAX_ANSWER_BYTES, Answer
from vit_serve_client.errors import ConnectionFailed, NotReady, Overloaded, Timeout, VitError
from vit_serve_client.requests import Request, Target, deadline_header
from vit_serve_client.results import Failure, Result
from vit_serve_client.tries import Tries

LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
"""Limits of a client's own pool; `concurrency` bounds its connections."""


def stream_arguments(target: Target, request: Request, left_s: float) -> dict[str, Any]:
    """Return the arguments of httpx2's `stream` for one try."""
    return {
        **request.arguments(target),
        "url": target.url + request.path,
        "headers": {**target.headers, "Accept": f"{request.accept}, application/problem+json", **deadline_header(left_s)},
        "timeout": left_s,
        "follow_redirects": False,  # the key is for this host alone
    }


def failure_of(error: httpx2.HTTPError, target: Target, tries: Tries) -> VitError:
    """Return the error of the client for one of httpx2's."""
    if isinstance(error, httpx2.TimeoutException):
        return tries.timeout()
    reason = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, httpx2.TransportError):
        return ConnectionFailed(f"The connection to {target.url} failed: {reason}.")
    return VitError(f"The answer cannot be read: {reason}.")


class Body:
    """Body of an answer, while it arrives."""

    def __init__(self, response: httpx2.Response, tries: Tries) -> None:
        self._response = response
        self._tries = tries
        self._body = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next part.

        Raises:
            Timeout: the deadline has passed; httpx2 bounds the time of each part only.
            VitError: the answer is too long.
        """
        self._tries.left_s()
        self._body += chunk
        if len(self._body) > MAX_ANSWER_BYTES:
            raise VitError(f"The answer has more than {MAX_ANSWER_BYTES} bytes.", status=self._response.status_code)

    def answer(self) -> Answer:
        """Return the whole answer."""
        return Answer(self._response.status_code, self._response.headers, bytes(self._body))


def is_unready(error: VitError) -> bool:
    """Tell whether the error of a question for readiness means no, and not that somebody else answers."""
    return isinstance(error, ConnectionFailed | NotReady | Overloaded | Timeout) or error.status == HTTPStatus.BAD_GATEWAY


def sent_images(chunk: list[bytes | VitError]) -> list[bytes]:
    """Return the images of a chunk that could be read."""
    return [image for image in chunk if isinstance(image, bytes)]


def in_places(chunk: list[bytes | VitError], answered: list[Result | Failure]) -> list[Result | Failure]:
    """Return an outcome for each image of a chunk: what was answered for those that were sent, and why the others were not."""
    answers = iter(answered)
    return [next(answers) if isinstance(image, bytes) else Failure(image) for image in chunk]

"""Requests to the service, and where it is."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TypeVar

import httpx2

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
BATCH_BYTES = 48 * 2**20
"""Most bytes of images that one request holds; the service takes 64 MiB of body unless it is told otherwise."""

PNG = "image/png"

_USER_AGENT = f"vit-serve-client/{version('vit-serve-client')}"


@dataclass(frozen=True, slots=True)
class Target:
    """Service that requests go to, and the key that it asks for."""

    url: str
    headers: dict[str, str]
    params: dict[str, str]
    """Parameters of every request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, without the time that it has."""

    method: str
    path: str
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    images: tuple[bytes, ...] = ()
    """Images of a batch, which are sent as multipart."""
    accept: str = "application/json"
    """Media type of the answer; errors are JSON in any case."""

    def arguments(self, target: Target) -> dict[str, object]:
        """Return the arguments of httpx2's `request`, but for URL, headers and timeout."""
        arguments: dict[str, object] = {"method": self.method, "params": self.params | target.params}
        if self.images:
            return {**arguments, "files": [("images", ("image", image, "application/octet-stream")) for image in self.images]}
        return arguments if self.content is None else {**arguments, "content": self.content}


def target(base_url: str | None, api_key: str | None, model: str | None = None) -> Target:
    """Return the service of these arguments, or of the variables `VIT_SERVE_URL` and `VIT_SERVE_API_KEY` where they are None.

    Raises:
        ValueError: the URL is not one of HTTP, or the key cannot be in a header.
    """
    url = (base_url or os.environ.get("VIT_SERVE_URL") or DEFAULT_URL).strip().rstrip("/")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"This is not a URL: {url!r}: {error}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"The service's URL must begin with http:// or https:// and a host: {url!r}.")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("The service's URL must have no user name, query or fragment.")
    headers = {"User-Agent": _USER_AGENT}
    key = (os.environ.get("VIT_SERVE_API_KEY", "") if api_key is None else api_key).strip()
    if not all("!" <= character <= "~" for character in key):
        raise ValueError("The API key must be of printable ASCII characters, without blanks.")
    params = {} if model is None else {"model": model}
    return Target(url, {**headers, "Authorization": f"Bearer {key}"} if key else headers, params)


def predict(image: bytes, top_k: int, vectors: bool) -> Request:
    """Return the request for one image."""
    return Request("POST", "/predict", _ranking(top_k, vectors), content=image)


def predict_batch(images: Sequence[bytes], top_k: int, vectors: bool) -> Request:
    """Return the request for several images."""
    return Request("POST", "/predict/batch", _ranking(top_k, vectors), images=tuple(images))


def embed(image: bytes, pooling: str | None, normalize: bool) -> Request:
    """Return the request for the features of one image."""
    chosen = {} if pooling is None else {"pooling": pooling}
    return Request("POST", "/embed", {**chosen, "normalize": "true" if normalize else "false"}, content=image)


def explain(image: bytes, class_: str | int | None, method: str | None) -> Request:
    """Return the request for the relevance of each patch of one image."""
    return Request("POST", "/explain", _question(class_, method), content=image)


def explain_picture(image: bytes, class_: str | int | None, method: str | None, opacity: float | None) -> Request:
    """Return the request for the same as a picture."""
    drawn = {} if opacity is None else {"opacity": str(opacity)}
    return Request("POST", "/explain", {**_question(class_, method), **drawn}, content=image, accept=PNG)


def model() -> Request:
    """Return the request for the description of the model."""
    return Request("GET", "/model")


def ready() -> Request:
    """Return the request for readiness."""
    return Request("GET", "/health/ready")


def deadline_header(left_s: float) -> dict[str, str]:
    """Return the header by which the service drops work that nobody waits for any more."""
    return {"X-Request-Timeout-Ms": str(max(1, int(left_s * 1000)))}


def chunks(images: Iterable[bytes | T], most: int, most_bytes: int = BATCH_BYTES) -> Iterator[list[bytes | T]]:
    """Yield the images in lists of at most so many, and so many bytes of them unless one alone has more.

    Whatever is not bytes, such as the error of a file, counts as an image without bytes.
    """
    chunk: list[bytes | T] = []
    size = 0
    for image in images:
        length = len(image) if isinstance(image, bytes) else 0
        if chunk and (len(chunk) == most or size + length > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(image)
        size += length
    if chunk:
        yield chunk


def _ranking(top_k: int, vectors: bool) -> dict[str, str]:
    return {"top_k": str(top_k), "vectors": "true" if vectors else "false"}


def _question(class_: str | int | None, method: str | None) -> dict[str, str]:
    named = {"class_index" if isinstance(class_, int) else "class": class_, "method": method}
    return {name: str(value) for name, value in named.items() if value is not None}

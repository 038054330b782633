"""Images of tasks, fetched from one origin and from nowhere else."""

import re
import time
from collections.abc import Callable

import httpx2

_NO_URL = re.compile(r"[\x00-\x20\x7f\\]")
"""Characters that programs read in different ways in a URL: blanks, controls and backslashes."""

_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """A task's image is not fetched. The message is a sentence for the log, without what the task holds."""


class Origin:
    """Scheme, host and port of a Label Studio, with the token that it asks for and the bounds of an image."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        max_bytes: int = 10 * 2**20,
        timeout_s: float = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the origin, without connecting.

        Raises:
            ValueError: the URL has more or less than scheme, host and port, or the token cannot be in a header.
        """
        try:
            self._url = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"The origin is not a URL: {error}.") from None
        beyond = self._url.userinfo or self._url.query or self._url.fragment or self._url.path not in ("", "/")
        if self._url.scheme not in _PORTS or not self._url.host or beyond:
            raise ValueError("The origin must be http:// or https://, a host and perhaps a port, without a path.")
        if token is not None and not (token and all("!" <= character <= "~" for character in token)):
            raise ValueError("The token must be of printable ASCII characters, without blanks.")
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._clock = clock
        headers = {"Accept-Encoding": "identity"} | ({} if token is None else {"Authorization": f"Token {token}"})
        # no proxy of the environment, which would open connections of its own
        self._http = httpx2.Client(headers=headers, follow_redirects=False, trust_env=False, timeout=timeout_s)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def resolve(self, reference: object) -> httpx2.URL:
        """Return the URL of a task's image.

        Raises:
            Refused: it is not a URL or path of this origin.
        """
        if not isinstance(reference, str) or not reference or len(reference) > 8000 or _NO_URL.search(reference):
            raise Refused("The task has no URL or path of an image.")
        try:
            url = self._url.join(reference)
        except (httpx2.InvalidURL, ValueError):
            raise Refused("The task's URL is not valid.") from None
        if url.userinfo or _origin(url) != _origin(self._url):
            raise Refused("The task's URL is of another origin.")
        return url

    def fetch(self, reference: object) -> bytes:
        """Return the image of a task.

        Raises:
            Refused: it is of another origin, or cannot be had within the bounds.
        """
        url = self.resolve(reference)
        end = self._clock() + self._timeout_s
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    raise Refused(f"The task's image was answered with status {response.status_code}.")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Refused("The task's image came compressed.")
                image = bytearray()
                for chunk in response.iter_raw():
                    image += chunk
                    if len(image) > self._max_bytes:
                        raise Refused(f"The task's image has more than {self._max_bytes} bytes.")
                    if self._clock() > end:
                        raise Refused(f"The task's image took longer than {self._timeout_s:g} s.")
                return bytes(image)
        except httpx2.HTTPError as error:
            raise Refused(f"The task's image could not be fetched: {type(error).__name__}.") from error


def _origin(url: httpx2.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host.lower(), url.port or _PORTS.get(url.scheme)

"""URL of the service under load: what it says, and whether it is this machine."""

import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from app.errors import StartError

_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"/[!-~]{0,2000}")
"""Path of a request, with its query: printable ASCII without blanks, which would end it."""


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """Parts of a URL."""

    scheme: str
    host: str
    port: int
    prefix: str
    """Path before all paths of the service, without a slash at its end."""


def parse_url(text: str) -> ServiceUrl:
    """Parse the URL of a service.

    Raises:
        StartError: it is not one.
    """
    if not re.fullmatch(r"[!-~]{1,2000}", text):
        raise StartError(f"{text[:100]!r} is not a URL: it must be of printable ASCII characters, without blanks")
    if "://" not in text:
        raise StartError(f"{text} is not a URL: it must begin with http:// or https://")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise StartError(f"{text} is not a URL: {error}") from None
    if parts.scheme not in _PORTS:
        raise StartError(f"{parts.scheme}:// is not a scheme of the service; the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise StartError("the URL must have no user name or password, which others can read; VIT_SERVE_API_KEY has the key")
    if not parts.hostname or port == 0:
        raise StartError(f"{text} is not a URL: it has no host, or 0 as its port")
    if "?" in text or "#" in text:
        raise StartError("the URL must have no query or fragment; --path takes a path with its query")
    return ServiceUrl(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"))


def check_path(path: str) -> str:
    """Return the path of a request.

    Raises:
        StartError: it does not begin with a slash, or has characters that a path cannot have.
    """
    if not _PATH.fullmatch(path) or "#" in path:
        raise StartError(f"--path {path[:100]!r} is not a path: it begins with / and has neither blanks nor #")
    return path


def addresses(url: ServiceUrl, *, foreign: bool) -> list[str]:
    """Return the IP addresses of the service, looked up once: during the load they must not change.

    Args:
        foreign: whether addresses that are not of this machine's loopback are allowed.

    Raises:
        StartError: the host is not known, or is not allowed.
    """
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StartError(f"the host {url.host} is not known: {getattr(error, 'strerror', None) or error}") from None
    hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    strangers = [host for host in hosts if not ip_address(host.partition("%")[0]).is_loopback]
    if strangers and not foreign:
        raise StartError(
            f"{url.host} ({strangers[0]}) is not this machine's loopback, and load can bring down a service; "
            "--yes-this-host-is-mine sends it all the same"
        )
    return hosts

"""HttpLimits: limits of one peer on the server, images apart."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of connections, with times in seconds."""

    max_connections: int = 512
    """Connections that may send requests."""
    reserve: int = 32
    """Further connections that may only ask for the service's health."""
    header_timeout_s: float = 10
    """Time until a header is complete, from the start of the connection, the end of the last response or its first byte."""
    keep_alive_s: float = 75
    """Time from the end of a response to the first byte of the next request."""
    max_url_bytes: int = 8 * 1024
    """Length of a URL, as in nginx and Apache."""
    max_header_fields: int = 100
    """Header fields, as in Apache; a browser behind three proxies sends about 30."""
    max_header_bytes: int = 32 * 1024
    """Size of all header fields together, as in nginx."""
    max_pipelined: int = 32
    """Requests that wait behind one in flight."""
    body_grace_s: float = 10
    """Time in which a body may arrive at any rate; afterwards its mean rate must be `min_body_rate`."""
    min_body_rate: float = 1024
    """Bytes a second: a twentieth of what the first mobile networks had."""
    max_answer_stall_s: float = 30
    """Period in which a peer must read at `min_body_rate` on average."""
    linger_s: float = 2
    """Lingering close: keep discarding input this long, so that the peer can read the response before a reset destroys it."""
    linger_bytes: int = 32 * 1024 * 1024
    """Bytes discarded during a lingering close."""

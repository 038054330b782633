"""The address that a client is counted by, however many addresses it has."""

from ipaddress import IPv6Address

from starlette.requests import Request

from app.http.addresses import unmapped

_UNKNOWN = "unknown"
"""Common name of all clients without an IP address, such as those of a Unix socket."""


def client_of(request: Request) -> str:
    """Return the client's IPv4 address, or the /64 network of its IPv6 address, which is the usual share of one customer.

    Behind a proxy this is the proxy's address, unless `trusted_proxies` names the proxy: uvicorn applies that setting.
    """
    try:
        address = unmapped(request.client.host if request.client else "")
    except ValueError:
        return _UNKNOWN
    return f"{IPv6Address(int(address) >> 64 << 64)}/64" if isinstance(address, IPv6Address) else str(address)

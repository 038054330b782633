"""The address that a client is counted by, however many addresses it has."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import Request

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


def unmapped(host: str) -> IPv4Address | IPv6Address:
    """Parse an address; an IPv4-mapped IPv6 address, `::ffff:192.0.2.1`, becomes the IPv4 address.

    Raises:
        ValueError: it is not an address.
    """
    address = ip_address(host)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

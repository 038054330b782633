"""Who calls, by address: what one caller is taken to be, however many addresses it has."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import Request

_NOBODY_KNOWN = "unknown"
"""What callers are together whose address is none, such as those of a Unix socket."""


def caller_of(request: Request) -> str:
    """The caller's IPv4 address, or the /64 network of its IPv6 address: that is what one customer is given.

    Behind a proxy it is the proxy's, unless the settings say that the proxy is to be believed; the server sees to that.
    """
    try:
        address = unmapped(request.client.host if request.client else "")
    except ValueError:
        return _NOBODY_KNOWN
    return f"{IPv6Address(int(address) >> 64 << 64)}/64" if isinstance(address, IPv6Address) else str(address)


def unmapped(host: str) -> IPv4Address | IPv6Address:
    """Parse an address; an IPv4 address in IPv6 form, `::ffff:192.0.2.1`, becomes the IPv4 address.

    Raises:
        ValueError: it is no address.
    """
    address = ip_address(host)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

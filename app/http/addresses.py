"""IP addresses of peers."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def unmapped(host: str) -> IPv4Address | IPv6Address:
    """Parse an address; an IPv4-mapped IPv6 address, `::ffff:192.0.2.1`, becomes the IPv4 address.

    Raises:
        ValueError: it is not an address.
    """
    address = ip_address(host)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

"""How values of settings are written: taken apart, put into the one form that works, or refused with what to write instead."""

import os
import re
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_SHORTEST_S = 0.01
_MAX_RATE = 10**9
_MAX_RATE_PERIOD_S = 366 * 24 * 3600
_MAX_RATES = 10
_PERIODS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400, "year": 360 * 86_400}
_RATE = re.compile(rf"\s*([0-9]{{1,20}})\s*(?:/|per)\s*([0-9]{{1,20}})?\s*({'|'.join(_PERIODS_S)})s?\s*", re.IGNORECASE)

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_CLUSTER = re.compile(r"(^|_)(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)$")
_CLUSTER_ADDRESS = ("tcp://", "udp://", "sctp://")


def split(value: Any) -> Any:
    """Take a list apart that is written with commas: `a,b,c`; nothing at all is an empty one, but commas alone are a slip."""
    if not isinstance(value, str) or not value.strip():
        return [] if isinstance(value, str) else value
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ValueError("there is nothing between two commas, or beside one")
    return parts


def lower(value: Any) -> Any:
    """Names of formats, levels and the like mean the same in capitals."""
    if isinstance(value, str):
        return value.strip().lower()
    return [lower(part) for part in value] if isinstance(value, list | tuple | set | frozenset) else value


def not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty: give it a value, or leave it out")
    return value


def path(value: Any) -> str:
    """A path, with `~` for the home directory as a shell has it."""
    not_empty(str(value))
    expanded = os.path.expanduser(str(value))
    if expanded.startswith("~"):
        raise ValueError("it begins with the home directory of somebody who is not known here")
    return expanded


def long_enough(seconds: float) -> float:
    if seconds < _SHORTEST_S:
        raise ValueError(f"less than {_SHORTEST_S} s lets nothing through")
    return seconds


def number_of_a_port(value: Any) -> Any:
    """Explain what Kubernetes and Docker make of a service named `vit`: an address in the place of a port."""
    if isinstance(value, str) and value.startswith(_CLUSTER_ADDRESS):
        raise ValueError(
            "it is an address, as Kubernetes sets it beside a service named `vit`: set a number, or enableServiceLinks: false"
        )
    return value


def device(name: str) -> str:
    index = name.partition(":")[2]
    if len(index) > 3 or int(index or 0) > 127:  # torch counts on from -128
        raise ValueError("there is no such device: the last that can be named is cuda:127")
    return name


def host(value: str) -> str:
    """An IP address (IPv6 with brackets or without) or a host name."""
    name = str(not_empty(value)).strip()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        ip_address(name)
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError("it is neither an IP address nor a host name; the port goes into VIT_PORT") from None
    return name


def networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        network = ip_network(value)  # raises a ValueError that says what is wrong
        if network.prefixlen == 0:
            raise ValueError(f"{value} is everybody: name the proxies, or each caller could choose its own address")
        if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
            raise ValueError(f"{value} never comes: write it as an IPv4 address or network")
    return values


class Rate(NamedTuple):
    """A number of requests in each period."""

    requests: int
    period_s: int


def parse_rates(notation: str) -> list[Rate]:
    """Parse rates such as `100/minute` or `10 per second; 1000 per 2 hours`, separated by `;`, `,` or `|`."""
    return [_rate(part) for part in re.split("[;,|]", notation)]


def _rate(text: str) -> Rate:
    if not (match := _RATE.fullmatch(text)):
        raise ValueError(f"{text[:40]!r} is not a rate limit: write it as in 100/minute, several as in 10/second;1000/hour")
    requests, periods, period = match.groups()
    return Rate(int(requests), int(periods or 1) * _PERIODS_S[period.lower()])


def rate_limit(notation: str) -> str:
    rates = parse_rates(notation)
    if len(rates) > _MAX_RATES:
        raise ValueError(f"there are more than {_MAX_RATES} limits")
    if not all(rate.requests for rate in rates):
        raise ValueError("a limit of 0 lets nobody in")
    if not all(rate.period_s for rate in rates):
        raise ValueError("a time of 0 limits nothing")
    if any(rate.requests > _MAX_RATE or rate.period_s > _MAX_RATE_PERIOD_S for rate in rates):
        raise ValueError(f"a limit is at most {_MAX_RATE} requests, and for at most a year")
    return notation


def origins(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_origin(value) for value in values)


def _origin(value: str) -> str:
    """An origin as browsers send it (https://html.spec.whatwg.org, "ASCII serialization of an origin"): without a path, in
    small letters, and without a port that is the scheme's own. The two that are none are `*` and `null`."""
    if value in ("*", "null"):
        return value
    scheme, separator, rest = value.lower().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme) or scheme == "file":
        raise ValueError(f"{value!r} is no origin: write it with its scheme, as in https://shop.example (a file's is null)")
    parts = urlsplit(f"//{rest.removesuffix('/')}")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or "?" in rest or "#" in rest:
        raise ValueError(f"{value!r} has more than scheme, host and port, which is all that a browser sends")
    name = _origin_host(value, parts.hostname or "")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{value!r}: {error}") from None
    return f"{scheme}://{name}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{name}:{port}"


def _origin_host(value: str, name: str) -> str:
    try:
        address = ip_address(name)
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            advice = "patterns are not known, and other letters than ASCII are written as xn--..."
            raise ValueError(f"{value!r} has no host name that a browser sends: {advice}") from None
        return name
    return f"[{address.compressed}]" if isinstance(address, IPv6Address) else str(address)


def is_of_a_cluster(name: str, value: str) -> bool:
    """Tell whether a variable is one that Kubernetes or Docker sets for a service whose name begins like our variables."""
    return bool(_CLUSTER.search(name)) or value.startswith(_CLUSTER_ADDRESS)

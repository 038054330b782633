"""Validators of settings: they parse a value, bring it into one form, or refuse it and say what to write."""

import os
import re
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

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


def split_list(value: Any) -> Any:
    """Split a list that is written with commas, `a,b,c`. An empty text is an empty list, an empty item is an error."""
    if not isinstance(value, str) or not value.strip():
        return [] if isinstance(value, str) else value
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ValueError("an item of the list is empty: remove the extra comma")
    return parts


def lower_case(value: Any) -> Any:
    """Return a word, or each word of a list, in lower case."""
    if isinstance(value, str):
        return value.strip().lower()
    return [lower_case(part) for part in value] if isinstance(value, list | tuple | set | frozenset) else value


def require_value(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty: give it a value, or unset it")
    return value


def expand_path(value: Any) -> str:
    """Expand `~` in a path as a shell does."""
    require_value(str(value))
    expanded = os.path.expanduser(str(value))
    if expanded.startswith("~"):
        raise ValueError("it begins with the home directory of an unknown user")
    return expanded


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names of models that cannot stand in a path."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            raise ValueError(f"{name!r} cannot be a model's name: letters, digits, '.', '_' and '-' can, up to 128")
        if name.endswith("-pixels") or name == "stats":
            raise ValueError(f"{name!r} cannot be a model's name: it has a meaning in protocol v2")
    return names


def split_pairs(value: Any) -> Any:
    """Split each `name=value` of a list."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value
    pairs = [item.partition("=") for item in value]
    if broken := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{broken[0]!r} has no name: write name=model,name=model")
    return [(name.strip(), model.strip()) for name, _, model in pairs]


def check_models(models: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Refuse names of models that cannot stand in a path, names that come twice, and models that are empty."""
    names = [name for name, _ in models]
    check_names(tuple(names))
    for name, model in models:
        if not model:
            raise ValueError(f"{name!r} has no model: write name=model,name=model")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} names two models")
    return tuple((name, expand_path(model)) for name, model in models)


def check_key(key: SecretStr | None) -> SecretStr | None:
    """Refuse a key that a header cannot carry as it is, such as one with the end of its line."""
    if key is not None and not re.fullmatch(r"[!-~]+( [!-~]+)*", key.get_secret_value()):
        raise ValueError("it must be of printable ASCII characters, without a blank or an end of line at its ends")
    return key


def check_route(path: str | None) -> str | None:
    """Refuse what is not the path of a route."""
    if path is not None and not re.fullmatch(r"/[A-Za-z0-9._~:/-]{0,1023}", path):
        raise ValueError("it must be a path that begins with '/', of letters, digits and '._~:/-'")
    return path


def check_seconds(seconds: float) -> float:
    if seconds < _SHORTEST_S:
        raise ValueError(f"it must be at least {_SHORTEST_S} s")
    return seconds


def check_port(value: Any) -> Any:
    """Refuse the address that Kubernetes and Docker set as `VIT_PORT` for a service named `vit`."""
    if isinstance(value, str) and value.startswith(_CLUSTER_ADDRESS):
        raise ValueError(
            "it is an address that Kubernetes sets for a service named `vit`: set a number, or enableServiceLinks: false"
        )
    return value


def check_device(name: str) -> str:
    index = name.partition(":")[2]
    if len(index) > 3 or int(index or 0) > 127:  # torch counts on from -128
        raise ValueError("there is no such device: cuda:127 is the last possible one")
    return name


def parse_host(value: str) -> str:
    """Parse an IP address (IPv6 with or without brackets) or a host name."""
    name = str(require_value(value)).strip()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        ip_address(name)
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError("it is neither an IP address nor a host name; the port goes into VIT_PORT") from None
    return name


def check_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        network = ip_network(value)  # raises a ValueError that names the fault
        if network.prefixlen == 0:
            raise ValueError(f"{value} trusts every client: name the proxies, or clients could forge their address")
        if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
            raise ValueError(f"{value} never matches: write it as an IPv4 address or network")
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


def check_rate_limit(notation: str) -> str:
    rates = parse_rates(notation)
    if len(rates) > _MAX_RATES:
        raise ValueError(f"there are more than {_MAX_RATES} rates")
    if not all(rate.requests for rate in rates):
        raise ValueError("a limit of 0 refuses every request")
    if not all(rate.period_s for rate in rates):
        raise ValueError("a period of 0 limits nothing")
    if any(rate.requests > _MAX_RATE or rate.period_s > _MAX_RATE_PERIOD_S for rate in rates):
        raise ValueError(f"a rate is at most {_MAX_RATE} requests in at most a year")
    return notation


def normalize_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_origin(value) for value in values)


def _origin(value: str) -> str:
    """Return an origin as browsers send it (https://html.spec.whatwg.org, "ASCII serialization of an origin").

    That is in lower case, without a path, and without the default port of the scheme. `*` and `null` are allowed too.
    """
    if value in ("*", "null"):
        return value
    scheme, separator, rest = value.lower().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme) or scheme == "file":
        raise ValueError(
            f"{value!r} is not an origin: write it with its scheme, as in https://shop.example (null for a local file)"
        )
    parts = urlsplit(f"//{rest.removesuffix('/')}")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or "?" in rest or "#" in rest:
        raise ValueError(f"{value!r} must have only scheme, host and port, as a browser sends it")
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
            advice = "patterns are not supported, and letters beyond ASCII are written as xn--..."
            raise ValueError(f"{value!r} has no valid host name: {advice}") from None
        return name
    return f"[{address.compressed}]" if isinstance(address, IPv6Address) else str(address)


def is_set_by_cluster(name: str, value: str) -> bool:
    """Return True for a variable that Kubernetes or Docker sets for a service whose name begins with `vit`."""
    return bool(_CLUSTER.search(name)) or value.startswith(_CLUSTER_ADDRESS)

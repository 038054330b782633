"""Wire: one protocol that clients speak, with its routes, health paths and errors. Another protocol is another `Wire`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from fastapi import APIRouter
from starlette.responses import Response

from app.api.schemas import Problem


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A path whose POST requests go to an endpoint without FastAPI; see `direct_route.py`."""

    path: str
    endpoint: Callable[..., Awaitable[Response]]
    """Called with the request, the same admitted, and its `Ranking`."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A wire protocol."""

    name: str
    """Name in `VIT_PROTOCOLS` and in the label `protocol` of metrics."""
    routers: tuple[APIRouter, ...]
    render: Callable[[Problem, Mapping[str, str]], Response]
    """Makes the response to an error, also to one raised outside the routes: keys, limits, 404, 500."""
    health_paths: frozenset[str] = frozenset()
    """Paths of health probes: answered ahead of other requests, and also when all connections are busy."""
    direct_routes: tuple[DirectRoute, ...] = ()
    """Routes that come before all routers."""
    paths: frozenset[str] = frozenset()
    """Paths under which it renders errors."""
    prefixes: tuple[str, ...] = ()
    """Beginnings of further such paths, such as `/v2`: the prefix itself and all below it."""


@dataclass(frozen=True)
class Wires:
    """All wires of an application. The first that owns a path renders its errors, and the last those of all other paths."""

    wires: tuple[Wire, ...]

    @cached_property
    def health_paths(self) -> frozenset[str]:
        """Health paths of all wires."""
        return frozenset().union(*(wire.health_paths for wire in self.wires))

    @cached_property
    def _by_path(self) -> dict[str, Wire]:
        return {path: wire for wire in reversed(self.wires) for path in wire.paths}

    @cached_property
    def _by_prefix(self) -> tuple[tuple[str, Wire], ...]:
        return tuple((f"{prefix}/", wire) for wire in self.wires for prefix in wire.prefixes)

    def at(self, path: str) -> Wire:
        """Return the wire of a path."""
        if wire := self._by_path.get(path):
            return wire
        return next((wire for prefix, wire in self._by_prefix if f"{path}/".startswith(prefix)), self.wires[-1])

    def protocol(self, path: str) -> str:
        """Return the name of the wire of a path, for metrics."""
        return self.at(path).name

    def render(self, path: str, problem: Problem, headers: Mapping[str, str]) -> Response:
        """Return the response to an error at a path."""
        return self.at(path).render(problem, headers)

"""Wire: one protocol that clients speak, with its routes, health paths and errors. Another protocol is another `Wire`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response
from starlette.routing import Route

from app.api.schemas import Problem


@dataclass(frozen=True, slots=True)
class Wire:
    """A wire protocol."""

    routers: tuple[APIRouter, ...]
    health_paths: frozenset[str]
    """Paths of health probes: answered ahead of other requests, and also when all connections are busy."""
    render: Callable[[Problem, Mapping[str, str]], Response]
    """Makes the response to an error, also to one raised outside the routes: keys, limits, 404, 500."""
    direct_routes: tuple[Route, ...] = ()
    """Routes that come before all routers."""
    prefix: str = ""
    """Path under which it renders errors, such as `/v2`; empty for all paths."""

    def owns(self, path: str) -> bool:
        """Return True for the prefix and the paths below it."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")


@dataclass(frozen=True, slots=True)
class Wires:
    """All wires of an application. The first that owns a path renders its errors, and the last those of all other paths."""

    wires: tuple[Wire, ...]

    @property
    def health_paths(self) -> frozenset[str]:
        """Health paths of all wires."""
        return frozenset().union(*(wire.health_paths for wire in self.wires))

    def render(self, path: str, problem: Problem, headers: Mapping[str, str]) -> Response:
        """Return the response to an error at a path."""
        wire = next((wire for wire in self.wires if wire.owns(path)), self.wires[-1])
        return wire.render(problem, headers)

"""Wire: one protocol that clients speak, with its routes, health paths and errors. Another protocol is another `Wire`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response

from app.api.schemas import Problem


@dataclass(frozen=True, slots=True)
class Wire:
    """A wire protocol."""

    routers: tuple[APIRouter, ...]
    health_paths: frozenset[str]
    """Paths of health probes: answered ahead of other requests, and also when all connections are busy."""
    render: Callable[[Problem, Mapping[str, str]], Response]
    """Makes the response to an error, also to one raised outside the routes: keys, limits, 404, 500."""
    prefixes: tuple[str, ...] = ("/",)
    """Beginnings of the paths whose errors it renders."""


@dataclass(frozen=True, slots=True)
class Wires:
    """All wires of an application. The first whose prefix matches renders an error; the last should match all paths."""

    wires: tuple[Wire, ...]

    @property
    def health_paths(self) -> frozenset[str]:
        """Health paths of all wires."""
        return frozenset().union(*(wire.health_paths for wire in self.wires))

    def render(self, path: str, problem: Problem, headers: Mapping[str, str]) -> Response:
        """Return the response to an error at a path."""
        wire = next((wire for wire in self.wires if path.startswith(wire.prefixes)), self.wires[-1])
        return wire.render(problem, headers)

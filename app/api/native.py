"""The service's own wire: `/predict`, `/model`, `/health`, errors as RFC 9457 problems."""

from app.api import health, model, predict
from app.api.problems import render_problem
from app.api.wire import Wire, Wires

NATIVE = Wire(
    routers=(predict.router, model.router, health.router),
    direct_routes=predict.DIRECT_ROUTES,
    health_paths=health.PATHS,
    render=render_problem,
)

WIRES = Wires((NATIVE,))
"""All wires of the service."""

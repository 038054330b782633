"""The service's own wire: `/predict`, `/embed`, `/explain`, `/model`, `/health`, errors as RFC 9457 problems."""

from app.api import embed, explain, health, model, predict
from app.api.problems import render_problem
from app.api.wire import Wire

NATIVE = Wire(
    name="predict",
    routers=(predict.router, embed.router, explain.router, model.router, health.router),
    direct_routes=predict.DIRECT_ROUTES,
    health_paths=health.PATHS,
    render=render_problem,
    paths=frozenset({"/predict", "/predict/batch", *model.PATHS, *embed.PATHS, explain.PATH, *health.PATHS}),
)

WITHOUT_PREDICT = Wire(
    name=NATIVE.name,
    routers=(model.router, health.router),
    health_paths=NATIVE.health_paths,
    render=NATIVE.render,
    paths=NATIVE.paths,
)
"""What is left of it where `VIT_PROTOCOLS` leaves it out: the description of the model, and probes."""

"""GET /health/live and GET /health/ready: answered at once under any load, without a key and without limits."""

from fastapi import APIRouter

from app import errors
from app.api.dependencies import ServiceDep
from app.api.problems import problem_responses
from app.api.schemas import HealthBody, ReadyBody

router = APIRouter(tags=["operations"])

PATHS = frozenset({"/health/live", "/health/ready"})


@router.get("/health/live")
async def live() -> HealthBody:
    """Answer 200 while the process can answer."""
    return HealthBody(status="live")


@router.get("/health/ready", responses=problem_responses(errors.NotReady, errors.Draining))
async def ready(service: ServiceDep) -> ReadyBody:
    """Answer 200 after warm-up, while the worker is alive and the service is not shutting down, even if the queue is full."""
    service.check_ready()
    return ReadyBody(status="ready", models={model.name: model.state for model in service.models.models})

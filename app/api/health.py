"""GET /health/live, GET /health/ready and GET /metrics: answered at once, whatever the load."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import errors
from app.api.dependencies import MetricsDep, ServiceDep
from app.api.problems import problem_responses
from app.api.schemas import HealthBody

router = APIRouter(tags=["operations"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> HealthBody:
    """200 while the process can answer."""
    return HealthBody(status="live")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses=problem_responses(errors.NotReady, errors.Draining))
async def ready(service: ServiceDep) -> HealthBody:
    """200 after warm-up, while the worker is alive and the service is not shutting down; a full queue does not matter."""
    service.check()
    return HealthBody(status="ready")


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response)
async def metrics(metrics: MetricsDep) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

"""GET /metrics: all metrics in Prometheus' text format."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.api.dependencies import MetricsDep

router = APIRouter(tags=["operations"])

PATH = "/metrics"


@router.get(PATH, response_class=Response)
async def metrics(metrics: MetricsDep) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

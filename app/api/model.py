"""GET /model: description of the served model."""

from fastapi import APIRouter

from app import errors
from app.api.dependencies import CHECKED, ServiceDep
from app.api.problems import problem_responses
from app.serving.results import ModelDescription

_ERRORS = problem_responses(errors.Unauthorized, errors.RateLimited, errors.NotReady, errors.Draining)

router = APIRouter(tags=["model"], dependencies=CHECKED)


@router.get("/model", responses=_ERRORS)
async def model(service: ServiceDep) -> ModelDescription:
    """Describe the model: name, labels, sizes, preprocessing, device and batch sizes."""
    return service.ready_classifier().describe()

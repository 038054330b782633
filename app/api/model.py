"""GET /model: what is being served."""

from dataclasses import asdict

from fastapi import APIRouter, Depends

from app import errors
from app.api.dependencies import ServiceDep, check_caller
from app.api.problems import problem_responses
from app.api.schemas import ModelBody

_ERRORS = problem_responses(errors.Unauthorized, errors.RateLimited, errors.NotReady, errors.Draining)

router = APIRouter(tags=["model"], dependencies=[Depends(check_caller)])


@router.head("/model", include_in_schema=False)
@router.get("/model", responses=_ERRORS)
async def model(service: ServiceDep) -> ModelBody:
    """Name, labels, sizes, preprocessing, device and batch sizes of the model."""
    return ModelBody.model_validate(asdict(service.check().describe()))

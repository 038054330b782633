"""GET /model: what is being served."""

from dataclasses import asdict

from fastapi import APIRouter, Depends

from app import errors
from app.api.dependencies import ClassifierDep, check_api_key
from app.api.problems import problem_responses
from app.api.schemas import ModelBody

router = APIRouter(tags=["model"], dependencies=[Depends(check_api_key)])


@router.head("/model", include_in_schema=False)
@router.get("/model", responses=problem_responses(errors.Unauthorized, errors.NotReady, errors.Draining))
async def model(classifier: ClassifierDep) -> ModelBody:
    """Name, labels, sizes, preprocessing, device and batch sizes of the model."""
    return ModelBody.model_validate(asdict(classifier.describe()))

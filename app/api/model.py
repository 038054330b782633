"""GET /model and GET /models: description of a model, and the list of all."""

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.api.dependencies import CHECKED, ServiceDep
from app.api.problems import problem_responses
from app.api.schemas import ListedModel, ModelsBody
from app.serving.results import ModelDescription

_ERRORS = problem_responses(errors.Unauthorized, errors.RateLimited, errors.NotReady, errors.Draining)

router = APIRouter(tags=["model"], dependencies=CHECKED)

PATHS = frozenset({"/model", "/models"})


@router.get("/model", responses=problem_responses(errors.ModelNotFound) | _ERRORS)
async def model(
    service: ServiceDep, name: Annotated[str | None, Query(alias="model", description="Name of the model.")] = None
) -> ModelDescription:
    """Describe a model, by default the first: name, labels, sizes, preprocessing, device and batch sizes."""
    return service.ready_classifier(name).describe()


@router.get("/models", responses=_ERRORS)
async def models(service: ServiceDep) -> ModelsBody:
    """List all models with their state, also while some of them are loading."""
    listed = [
        ListedModel(
            name=model.name,
            aliases=model.spec.aliases,
            state=model.state,
            default=model is service.models.find(None),
            bytes=model.bytes,
            reason=model.why_not_loaded,
        )
        for model in service.models.models
    ]
    return ModelsBody(models=listed)

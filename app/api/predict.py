"""POST /predict and POST /predict/batch."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.api.answers import answer, write_result, write_results
from app.api.classify import classify_all
from app.api.dependencies import AdmittedDep, while_connected
from app.api.payloads.images import read_image, read_images
from app.api.problems import IMAGE_ERRORS, problem_responses, retry_headers
from app.api.schemas import EXAMPLE_IMAGE, PredictBatchBody, PredictBody, Ranking
from app.api.wire import DirectRoute

router = APIRouter(tags=["predict"])

RankingDep = Annotated[Ranking, Query()]


_ERRORS = problem_responses(*IMAGE_ERRORS, errors.NoClasses)

_BINARY = {"type": "string", "format": "binary"}


def _body(forms: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": forms}}


IMAGE_FORMS = _body(
    {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY}},
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "description": "base64, or a data: URI"}},
            },
            "example": {"image": EXAMPLE_IMAGE},
        },
        "image/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
    }
)
"""OpenAPI declaration of a body with one image."""

BATCH_FORMS = _body(
    {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": _BINARY}},
            },
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": {"type": "string"}}},
            },
            "example": {"images": [EXAMPLE_IMAGE, EXAMPLE_IMAGE]},
        },
    }
)
"""OpenAPI declaration of a body with several images."""


@router.post("/predict", response_model=PredictBody, responses=_ERRORS, openapi_extra=IMAGE_FORMS)
async def predict(request: Request, admitted: AdmittedDep, ranking: RankingDep) -> Response:
    """Classify one image, sent as a multipart part `image`, as the raw body, or as base64 in JSON."""
    state, classifier = admitted.state, admitted.classifier
    classifier.check_classes()
    async with state.service.uploading(admitted.deadline):
        image_bytes = await read_image(admitted.body, state.body_limits)
    classification = await while_connected(request, classifier.classify(image_bytes, admitted.deadline))
    request.state.timings = classification.timings
    return answer(classifier, await state.slices.work(write_result(classification, ranking.top_k, ranking.vectors)))


@router.post("/predict/batch", response_model=PredictBatchBody, responses=_ERRORS, openapi_extra=BATCH_FORMS)
async def predict_batch(request: Request, admitted: AdmittedDep, ranking: RankingDep) -> Response:
    """Classify several images, sent as multipart parts `images` or as base64 in JSON; a bad one fails alone."""
    state, classifier = admitted.state, admitted.classifier
    classifier.check_classes()
    async with state.service.uploading(admitted.deadline):
        images = await read_images(admitted.body, state.body_limits)
    outcomes = await classify_all(request, admitted, images)
    results = await state.slices.work(write_results(outcomes, ranking.top_k, ranking.vectors))
    return answer(classifier, results, retry_headers(outcomes))


DIRECT_ROUTES = (DirectRoute("/predict", predict), DirectRoute("/predict/batch", predict_batch))

"""POST /explain: how much each part of an image counts for a class."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from app import errors
from app.api.accept import names
from app.api.dependencies import AdmittedDep, while_connected
from app.api.payloads.images import read_image
from app.api.predict import IMAGE_FORMS
from app.api.problems import IMAGE_ERRORS, problem_responses
from app.api.schemas import ExplainBody, Explaining, ImageSize, PatchGrid
from app.explaining.explainer import Explanation
from app.serving.results import ModelDescription

router = APIRouter(tags=["explain"])

PATH = "/explain"

ExplainingDep = Annotated[Explaining, Query()]

_PNG = "image/png"
_DIGITS = 4
_ERRORS = problem_responses(*IMAGE_ERRORS, errors.NoClasses, errors.NoExplanation)
_PICTURE = {_PNG: {"schema": {"type": "string", "format": "binary"}}}


@router.post(PATH, response_model=ExplainBody, responses={**_ERRORS, 200: {"content": _PICTURE}}, openapi_extra=IMAGE_FORMS)
async def explain(request: Request, admitted: AdmittedDep, asked: ExplainingDep) -> Response:
    """Explain one image, in the forms of `POST /predict`: the relevance of each patch, or a picture by `Accept: image/png`."""
    state, classifier = admitted.state, admitted.classifier
    explainer = classifier.check_explainer()
    picture = names(request.headers.get("accept", ""), _PNG)
    checked = explainer.check(asked.method, asked.class_, asked.class_index, asked.opacity if picture else None)
    async with state.service.uploading(admitted.deadline):
        image = await read_image(admitted.body, state.body_limits)
    explanation = await while_connected(request, explainer.explain(image, checked, admitted.deadline))
    request.state.timings = explanation.timings
    if picture:
        return Response(explanation.overlay, media_type=_PNG)
    return Response(to_json(_body(classifier.model, checked.method, explanation)), media_type="application/json")


def _body(model: ModelDescription, method: str, explanation: Explanation) -> ExplainBody:
    index = explanation.class_index
    rows, columns = explanation.grid.shape
    left, top, right, bottom = (round(edge, 2) for edge in explanation.box)
    return ExplainBody(
        model=model.name,
        method=method,
        class_index=index,
        label=None if index is None else model.labels[index],
        probability=explanation.probability,
        image=ImageSize(width=explanation.size[0], height=explanation.size[1]),
        grid=PatchGrid(rows=rows, columns=columns, left=left, top=top, right=right, bottom=bottom),
        relevance=[[round(value, _DIGITS) for value in row] for row in explanation.grid.tolist()],
    )

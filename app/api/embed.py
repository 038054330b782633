"""POST /embed and POST /embed/batch: features of images."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from app import errors
from app.api.accept import names
from app.api.answers import write_numbers
from app.api.classify import Outcome, embed_all
from app.api.dependencies import AdmittedDep
from app.api.payloads.images import read_image, read_images
from app.api.predict import BATCH_FORMS, IMAGE_FORMS
from app.api.problems import IMAGE_ERRORS, problem_of, problem_responses, retry_headers
from app.api.schemas import EmbedBatchBody, EmbedBody, Embedding, FailedBody
from app.http.time_slices import Steps
from app.serving import results
from app.serving.results import scaled

router = APIRouter(tags=["embed"])

PATHS = frozenset({"/embed", "/embed/batch"})

EmbeddingDep = Annotated[Embedding, Query()]

_RAW = "application/octet-stream"

_ERRORS = problem_responses(*IMAGE_ERRORS, errors.NoFeatures)


@router.post("/embed", response_model=EmbedBody, responses=_ERRORS, openapi_extra=IMAGE_FORMS)
async def embed(request: Request, admitted: AdmittedDep, asked: EmbeddingDep) -> Response:
    """Return the features of one image, in the forms of `POST /predict`; raw float32 by `Accept: application/octet-stream`."""
    state = admitted.state
    features = admitted.classifier.check_features(asked.pooling)
    async with state.service.uploading(admitted.deadline):
        image = await read_image(admitted.body, state.body_limits)
    (outcome,) = await embed_all(request, admitted, [image], features)
    if isinstance(outcome, errors.ServiceError):
        raise outcome
    vector = scaled(outcome.vector, normalize=asked.normalize)
    if names(request.headers.get("accept", ""), _RAW):
        return Response(vector.astype("<f4").tobytes(), media_type=_RAW)
    written = await state.slices.work(write_numbers(vector))
    return _answer(admitted.classifier.model.name, features, asked, len(vector), b'"embedding":%b' % written)


@router.post("/embed/batch", response_model=EmbedBatchBody, responses=_ERRORS, openapi_extra=BATCH_FORMS)
async def embed_batch(request: Request, admitted: AdmittedDep, asked: EmbeddingDep) -> Response:
    """Return the features of several images, in the forms of `POST /predict/batch`; a bad one fails alone."""
    state = admitted.state
    features = admitted.classifier.check_features(asked.pooling)
    async with state.service.uploading(admitted.deadline):
        images = await read_images(admitted.body, state.body_limits)
    outcomes = await embed_all(request, admitted, images, features)
    written = await state.slices.work(_write_results(outcomes, asked))
    size = next(each.size for each in admitted.classifier.model.features if each.name == features)
    return _answer(admitted.classifier.model.name, features, asked, size, b'"results":%b' % written, retry_headers(outcomes))


def _write_results(outcomes: list[Outcome[results.Embedding]], asked: Embedding) -> Steps[bytes]:
    written = []
    for outcome in outcomes:
        if isinstance(outcome, errors.ServiceError):
            written.append(to_json(FailedBody(error=problem_of(outcome))))
        else:
            numbers = yield from write_numbers(scaled(outcome.vector, normalize=asked.normalize))
            written.append(b'{"embedding":%b}' % numbers)
    return b"[%b]" % b",".join(written)


def _answer(
    model: str, features: str, asked: Embedding, size: int, fields: bytes, headers: dict[str, str] | None = None
) -> Response:
    named = to_json({"model": model, "pooling": features, "normalized": asked.normalize, "size": size})
    return Response(b"%b,%b}" % (named[:-1], fields), 200, headers, "application/json")

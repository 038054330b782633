"""Answers of predictions as JSON, written in steps: 32 images with 1,000 classes would take pydantic a second."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from app.api.problems import problem_of
from app.api.schemas import FailedBody
from app.errors import ServiceError
from app.http.time_slices import Steps
from app.serving.classifier import Classifier
from app.serving.results import Classification

_CLASSES_PER_STEP = 256


def answer(classifier: Classifier, fields: bytes, headers: dict[str, str] | None = None) -> Response:
    """Return a `PredictBody` or `PredictBatchBody`, given its other fields as JSON."""
    model = to_json(classifier.model.name), to_json(classifier.model.activation)
    return Response(b'{"model":%b,"activation":%b,%b}' % (*model, fields), 200, headers, "application/json")


def write_results(outcomes: Sequence[Classification | ServiceError], top_k: int, vectors: bool) -> Steps[bytes]:
    """Write the field `results` of a `PredictBatchBody`."""
    written = []
    for outcome in outcomes:
        if isinstance(outcome, Classification):
            written.append(b"{%b}" % (yield from write_result(outcome, top_k, vectors)))
        else:
            written.append(to_json(FailedBody(error=problem_of(outcome))))
    return b'"results":[%b]' % b",".join(written)


def write_result(classification: Classification, top_k: int, vectors: bool) -> Steps[bytes]:
    """Write the fields of a `ResultBody`."""
    ranked = classification.ranked(top_k)
    predictions = yield from _write_list(classification.predictions(classes) for classes in _chunks(ranked))
    fields = b'"predictions":' + predictions
    if vectors:
        logits = yield from write_numbers(classification.logits)
        probabilities = yield from write_numbers(classification.probabilities)
        fields += b',"logits":%b,"probabilities":%b' % (logits, probabilities)
    return fields


def write_numbers(numbers: NDArray[Any] | None) -> Steps[bytes]:
    """Write a list of numbers, or null."""
    if numbers is None:
        return b"null"
    return (yield from _write_list(chunk.tolist() for chunk in _chunks(numbers)))


def _write_list(chunks: Iterable[list[Any]]) -> Steps[bytes]:
    written = []
    for chunk in chunks:
        written.append(to_json(chunk)[1:-1])
        yield
    return b"[%b]" % b",".join(written)


def _chunks(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (numbers[start : start + _CLASSES_PER_STEP] for start in range(0, len(numbers), _CLASSES_PER_STEP))

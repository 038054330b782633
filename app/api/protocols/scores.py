"""Scores of images as the lists of labels that other protocols answer with."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.responses import Response

from app.http.time_slices import Steps
from app.serving.results import Classification
from model.head import HeadActivation, probabilities


def scores(classification: Classification, function: HeadActivation | None = None) -> NDArray[np.float32]:
    """Return the score of each class: probabilities by the model's own activation or by another, or logits by `none`."""
    chosen = classification.probabilities if function is None else probabilities(classification.logits, function)
    return classification.logits if chosen is None else chosen


def ranked(classification: Classification, top_k: int, function: HeadActivation | None = None) -> list[dict[str, Any]]:
    """Return `{"label", "score"}` of the `top_k` classes, best first."""
    classes = classification.ranked(top_k)
    values = scores(classification, function)[classes].tolist()
    return [{"label": classification.labels[index], "score": value} for index, value in zip(classes, values, strict=True)]


def write_rows(rows: Iterable[Any]) -> Steps[bytes]:
    """Write a list as JSON, row by row."""
    written = []
    for row in rows:
        written.append(to_json(row))
        yield
    return b"[%b]" % b",".join(written)


def json_response(content: bytes) -> Response:
    return Response(content, media_type="application/json")

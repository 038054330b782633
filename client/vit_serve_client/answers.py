"""Answers of the service: bytes -> results, or the error that they report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from vit_serve_client.errors import BY_CODE, BY_STATUS, VitError
from vit_serve_client.requests import PNG
from vit_serve_client.results import Embedding, Explanation, Failure, Features, Model, Prediction, Result

Built = TypeVar("Built", Features, Model, Prediction)

MAX_ANSWER_BYTES = 256 * 2**20
"""Largest answer that is read; 32 images with all numbers of 20,000 classes take 50 MB."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one request, whole."""

    status: int
    headers: Mapping[str, str]
    """Their names are compared without case, as httpx2's are."""
    body: bytes

    @property
    def request_id(self) -> str | None:
        """Id of the request in the service's log."""
        return self.headers.get("X-Request-ID")


def check(answer: Answer, now: float) -> None:
    """Raise the error of an answer that is not a success; `now` is the time since the epoch, in seconds."""
    if answer.status == HTTPStatus.OK:
        return
    retry_after = retry_after_s(answer.headers.get("Retry-After", ""), now)
    problem = _json(answer)
    if isinstance(problem, dict) and isinstance(problem.get("code"), str):
        raise _problem(problem, answer.status, answer, retry_after)
    kind = BY_STATUS.get(answer.status, VitError)
    raise kind(_foreign(answer), status=answer.status, request_id=answer.request_id, retry_after=retry_after)


def read_result(answer: Answer) -> Result:
    """Return the result of one image."""
    body = _object(answer)
    with _Reading(answer):
        return _result(body, body, answer)


def read_results(answer: Answer, count: int) -> list[Result | Failure]:
    """Return the results of a batch of so many images."""
    body = _object(answer)
    with _Reading(answer):
        rows = body["results"]
        if len(rows) != count:
            raise ValueError(f"{len(rows)} results for {count} images")
        return [
            Failure(_problem(row["error"], row["error"].get("status"), answer))
            if "error" in row
            else _result(row, body, answer)
            for row in rows
        ]


def read_embedding(answer: Answer) -> Embedding:
    """Return the features of one image."""
    body = _object(answer)
    with _Reading(answer):
        return Embedding(
            vector=tuple(map(float, body["embedding"])),
            pooling=body["pooling"],
            normalized=body["normalized"],
            model=body["model"],
            request_id=answer.request_id,
            timings=server_timing(answer.headers.get("Server-Timing", "")),
        )


def read_explanation(answer: Answer) -> Explanation:
    """Return the relevance of each patch of one image."""
    body = _object(answer)
    with _Reading(answer):
        grid, image = body["grid"], body["image"]
        left, top, right, bottom = (float(grid[side]) for side in ("left", "top", "right", "bottom"))
        return Explanation(
            relevance=tuple(tuple(map(float, row)) for row in body["relevance"]),
            box=(left, top, right, bottom),
            size=(image["width"], image["height"]),
            method=body["method"],
            class_index=body["class_index"],
            label=body["label"],
            probability=body["probability"],
            model=body["model"],
            request_id=answer.request_id,
            timings=server_timing(answer.headers.get("Server-Timing", "")),
        )


def read_picture(answer: Answer) -> bytes:
    """Return the picture of an answer."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != PNG:
        raise VitError(_foreign(answer), status=answer.status, request_id=answer.request_id)
    return answer.body


def read_model(answer: Answer) -> Model:
    """Return the description of the model."""
    body = _object(answer)
    with _Reading(answer):
        return _built(Model, body | {"features": [_built(Features, features) for features in body["features"]]})


def retry_after_s(value: str, now: float) -> float | None:
    """Parse a Retry-After header, which holds seconds or a date; None if it is neither. A date in the past is 0."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value).replace(tzinfo=UTC)  # HTTP dates are always in GMT
    except (ValueError, OverflowError):
        return None
    return max(0.0, (moment - datetime.fromtimestamp(now, UTC)).total_seconds())


def server_timing(value: str) -> dict[str, float]:
    """Parse a Server-Timing header to milliseconds by name; what has no duration is left out."""
    timings: dict[str, float] = {}
    for metric in value.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, number = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    timings[name] = float(number.strip().strip('"'))
                except ValueError:
                    continue
    return timings


def _problem(problem: Mapping[str, Any], status: int | None, answer: Answer, retry_after: float | None = None) -> VitError:
    code, detail = problem["code"], problem.get("detail")
    return BY_CODE.get(code, VitError)(
        detail if isinstance(detail, str) and detail else f"The service answered {code}.",
        status=status,
        code=code,
        request_id=answer.request_id,
        retry_after=retry_after,
    )


def _foreign(answer: Answer) -> str:
    """Return a sentence about an answer that is not vit-serve's."""
    try:
        name = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        name = str(answer.status)
    if location := answer.headers.get("Location"):
        return f"The answer is {name}, a redirect to {location[:200]!r}, which is not followed: use that URL."
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip() or "of no type"
    return f"The answer is {name} ({kind[:100]}) and not one of vit-serve; it may be a proxy's."


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _object(answer: Answer) -> dict[str, Any]:
    body = _json(answer)
    if not isinstance(body, dict):
        raise VitError(_foreign(answer), status=answer.status, request_id=answer.request_id)
    return body


class _Reading:
    """Turns faults of an answer's form into a `VitError`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
            sentence = f"The answer has not the form that vit-serve's has: {type(error).__name__}: {error}."
            raise VitError(sentence, status=self._answer.status, request_id=self._answer.request_id) from error


def _result(row: Mapping[str, Any], body: Mapping[str, Any], answer: Answer) -> Result:
    return Result(
        predictions=tuple(_built(Prediction, prediction) for prediction in row["predictions"]),
        logits=_numbers(row.get("logits")),
        probabilities=_numbers(row.get("probabilities")),
        model=body["model"],
        activation=body["activation"],
        request_id=answer.request_id,
        timings=server_timing(answer.headers.get("Server-Timing", "")),
    )


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _built(kind: type[Built], values: Mapping[str, Any]) -> Built:
    """Return an object of a mapping, whose other keys are ignored."""
    picked: dict[str, Any] = {field.name: values[field.name] for field in fields(kind)}
    lists = {name: tuple(value) for name, value in picked.items() if isinstance(value, list)}
    return kind(**(picked | lists))

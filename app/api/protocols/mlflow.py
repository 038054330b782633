"""MLflow's scoring protocol: data frames or lists of images in base64, answered with one row for each.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#local-inference-server-spec
"""

from typing import Any

from fastapi import Request
from starlette.responses import Response

from app.api.classify import classify_each
from app.api.dependencies import Admitted
from app.api.protocols import json_fields as fields
from app.api.protocols.scores import json_response, ranked, write_rows
from app.errors import InvalidParameter, MalformedRequest
from app.serving.results import Classification

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_IMAGE_COLUMNS = ("image", "images", "image_bytes", "content", "b64", "data", "bytes", "inputs")
_PARAMS = frozenset({"top_k"})


async def answer(request: Request, admitted: Admitted, content: dict[str, Any]) -> Response:
    """Answer `{"predictions": [...]}`: the best class of each row, or the best where `params` has a `top_k` over 1."""
    request.state.protocol = "mlflow"
    params = fields.as_object(content.get("params"), "params")
    fields.refuse_unknown(params, _PARAMS, "the parameter")
    top_k = fields.as_count(params.get("top_k", 1), "top_k")
    given = [form for form in _FORMS if form in content]
    if len(given) != 1:
        raise MalformedRequest(f"Send exactly one of {', '.join(_FORMS)}.")
    images = await fields.decode_each(admitted, _rows(given[0], content[given[0]]), "row")
    classifications = await classify_each(request, admitted, images, "row")

    def row(classification: Classification) -> Any:
        best = ranked(classification, top_k)
        return best[0] if top_k == 1 else best

    return json_response(b'{"predictions":%b}' % await admitted.state.slices.work(write_rows(map(row, classifications))))


def _rows(form: str, content: Any) -> list[Any]:
    """Return the cell with the image of each row."""
    match form:
        case "dataframe_split":
            return _split(fields.as_object(content, form))
        case "dataframe_records":
            return [_cell(fields.as_object(record, form)) for record in fields.as_list(content, form)]
    if isinstance(content, dict):
        content = _cell(content)
    return fields.as_list(content, form)


def _split(frame: dict[str, Any]) -> list[Any]:
    columns = [_name(column) for column in fields.as_list(frame.get("columns"), "columns")]
    if len(set(columns)) < len(columns):
        raise MalformedRequest("The `columns` have a name twice.")
    rows = [fields.as_list(row, "data") for row in fields.as_list(frame.get("data"), "data")]
    if any(len(row) != len(columns) for row in rows):
        raise MalformedRequest("Each row of `data` must have a value for each of the `columns`.")
    return [_cell(dict(zip(columns, row, strict=True))) for row in rows]


def _name(column: Any) -> str:
    """Return a column's name, which pandas writes as a number where it has none."""
    return str(column) if isinstance(column, int) else fields.as_text(column, "columns")


def _cell(row: dict[str, Any]) -> Any:
    """Return the image of a row: that of its one column, or of the one column whose name says so."""
    names = list(row) if len(row) == 1 else [name for name in _IMAGE_COLUMNS if name in row]
    if len(names) != 1:
        raise InvalidParameter(f"One column must hold the image; call it one of {', '.join(_IMAGE_COLUMNS)}.")
    return row[names[0]]

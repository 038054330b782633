"""Write an answer of the protocol: outputs as JSON, or binary behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.api.protocols.model_names import VERSION
from app.api.protocols.v2.describe import output_names
from app.api.protocols.v2.request import InferRequest, Output
from app.api.protocols.v2.tensors import write_elements
from app.errors import InvalidParameter
from app.http.time_slices import Steps
from app.serving.classifier import Classifier
from app.serving.results import Classification


@dataclass(frozen=True, slots=True)
class Written:
    """An answer's body."""

    content: bytes
    json_bytes: int | None
    """Length of its JSON, in front of binary outputs; None if there are none."""


def asked_outputs(request: InferRequest, classifier: Classifier, *, pixels: bool) -> tuple[Output, ...]:
    """Return the outputs that a request asks for, or all of the model.

    Args:
        request: the request.
        classifier: the model.
        pixels: True under the name whose input is pixels.

    Raises:
        InvalidParameter: there is no such output, or it has no classes to rank.
    """
    names = output_names(classifier, pixels=pixels)
    for output in request.outputs:
        if output.name not in names:
            raise InvalidParameter(f"There is no output {output.name[:128]!r}; outputs are {', '.join(names)}.")
        if output.classes and output.name == "labels":
            raise InvalidParameter("Output 'labels' is no numbers to classify by; ask for logits or probabilities.")
    return request.outputs or tuple(Output(name, request.binary_output) for name in names)


def write_response(
    name: str, request_id: str, outputs: Sequence[Output], classifications: Sequence[Classification]
) -> Steps[Written]:
    """Write an answer in steps."""
    described, binary = [], []
    for output in outputs:
        tensor, data = yield from _write_output(output, classifications)
        described.append(tensor)
        if output.binary:
            binary.append(data)
    identity = b',"id":%b' % to_json(request_id) if request_id else b""
    content = b'{"model_name":%b,"model_version":"%b"%b,"outputs":[%b]}' % (
        to_json(name),
        VERSION.encode(),
        identity,
        b",".join(described),
    )
    return Written(b"".join((content, *binary)), len(content) if binary else None)


def _write_output(output: Output, classifications: Sequence[Classification]) -> Steps[tuple[bytes, bytes]]:
    """Return the output's JSON and its binary data."""
    numbers = output.name != "labels" and not output.classes
    rows: list[Any] = []
    for classification in classifications:
        rows.append(_row(output, classification, numbers=numbers))
        yield
    length = len(rows[0]) // (4 if numbers and output.binary else 1)
    tensor = {"name": output.name, "datatype": "FP32" if numbers else "BYTES", "shape": [len(rows), length]}
    if not output.binary:
        written = []
        for row in rows:
            written.append(to_json(row)[1:-1])
            yield
        return b'%b,"data":[%b]}' % (to_json(tensor)[:-1], b",".join(written)), b""
    parts = []
    for row in rows:
        parts.append(row if numbers else write_elements(map(str.encode, row)))
        yield
    data = b"".join(parts)
    return to_json(tensor | {"parameters": {"binary_data_size": len(data)}}), data


def _row(output: Output, classification: Classification, *, numbers: bool) -> Any:
    """Return one image's part of an output: numbers as bytes or a list, labels and classes as strings."""
    if numbers:
        values = getattr(classification, output.name)
        return values.astype("<f4").tobytes() if output.binary else values.tolist()
    if not output.classes:
        return [classification.labels[index] for index in classification.ranked(len(classification.labels))]
    values = getattr(classification, output.name)
    return [f"{values[index]:.6f}:{index}:{classification.labels[index]}" for index in classification.ranked(output.classes)]

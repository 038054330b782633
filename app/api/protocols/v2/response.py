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
    is_text = output.name == "labels" or output.classes > 0
    rows: list[Any] = []
    for classification in classifications:
        rows.append(_texts(output, classification) if is_text else getattr(classification, output.name))
        yield
    tensor = {"name": output.name, "datatype": "BYTES" if is_text else "FP32", "shape": [len(rows), len(rows[0])]}
    written = []
    for row in rows:
        if output.binary:
            written.append(write_elements(map(str.encode, row)) if is_text else row.astype("<f4").tobytes())
        else:
            written.append(to_json(row if is_text else row.tolist())[1:-1])
        yield
    if not output.binary:
        return b'%b,"data":[%b]}' % (to_json(tensor)[:-1], b",".join(written)), b""
    data = b"".join(written)
    return to_json(tensor | {"parameters": {"binary_data_size": len(data)}}), data


def _texts(output: Output, classification: Classification) -> list[str]:
    """Return one image's labels, best first, or its best classes as `value:index:label`."""
    labels = classification.labels
    if not output.classes:
        return [labels[index] for index in classification.ranked(len(labels))]
    values = getattr(classification, output.name)
    return [f"{values[index]:.6f}:{index}:{labels[index]}" for index in classification.ranked(output.classes)]

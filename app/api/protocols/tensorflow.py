"""KServe's protocol v1 and TensorFlow Serving's REST API, which share their paths under `/v1/models`.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol and
https://www.tensorflow.org/tfx/serving/api_rest
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from app.api.classify import classify_each
from app.api.dependencies import CHECKED, Admitted, AdmittedDep, ServiceDep
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import render_error
from app.api.protocols.model_names import VERSION, check_version, served_names
from app.api.protocols.scores import json_response, write_rows
from app.api.schemas import EXAMPLE_IMAGE
from app.api.wire import Wire
from app.errors import InvalidParameter, MalformedRequest
from app.http.time_slices import Steps
from app.serving.classifier import Classifier
from app.serving.results import Classification

router = APIRouter(tags=["v1"], responses=declared("error"))

_SIGNATURE = "serving_default"
_BODY = json_body({"instances": [{"b64": EXAMPLE_IMAGE}]})


@router.get("/v1/models", dependencies=CHECKED)
async def models(service: ServiceDep) -> dict[str, Any]:
    """List the models and their aliases, in the forms of KServe and of OpenAI."""
    service.check_accepting()
    names = served_names(service.models)
    return {"models": names, "object": "list", "data": [_openai_model(name) for name in names]}


@router.get("/v1/models/{name}", dependencies=CHECKED)
@router.get("/v1/models/{name}/versions/{version}", dependencies=CHECKED)
async def status(service: ServiceDep, name: str, version: str | None = None) -> dict[str, Any]:
    """Tell that the model is ready, in the forms of KServe, TensorFlow Serving and OpenAI."""
    service.ready_classifier(name)
    check_version(name, version)
    available = {"version": VERSION, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return {"name": name, "ready": True, "model_version_status": [available], **_openai_model(name)}


@router.get("/v1/models/{name}/metadata", dependencies=CHECKED)
@router.get("/v1/models/{name}/versions/{version}/metadata", dependencies=CHECKED)
async def metadata(service: ServiceDep, name: str, version: str | None = None) -> dict[str, Any]:
    """Describe the model's one signature, as TensorFlow Serving does."""
    classifier = service.ready_classifier(name)
    check_version(name, version)
    numbers = _tensor("DT_FLOAT", (-1, len(classifier.model.labels)))
    signature = {
        "inputs": {"image": _tensor("DT_STRING", (-1,))},
        "outputs": dict.fromkeys(_outputs(classifier), numbers),
        "method_name": "tensorflow/serving/predict",
    }
    signatures = {_SIGNATURE: signature}
    spec = {"name": name, "version": VERSION, "signature_name": ""}
    metadata = {"signature_def": {"signature_def": signatures, "signatureDef": signatures}}
    return {"model_spec": spec, "modelSpec": spec, "metadata": metadata}  # as TensorFlow Serving has it, and OpenVINO's server


@router.post("/v1/models/{name}:predict", openapi_extra=_BODY)
@router.post("/v1/models/{name}/versions/{version}:predict", openapi_extra=_BODY)
async def predict(request: Request, admitted: AdmittedDep, name: str, version: str | None = None) -> Response:
    """Classify `instances`, answered row by row, or `inputs`, answered column by column."""
    admitted.classifier.check_classes()
    check_version(name, version)
    content = await fields.read_object(admitted)
    signature = content.get("signature_name")
    if signature is not None and fields.as_text(signature, "signature_name") != _SIGNATURE:
        raise InvalidParameter(f"There is only the signature {_SIGNATURE!r}.")
    if ("instances" in content) == ("inputs" in content):
        raise MalformedRequest("Send the images in base64 as `instances` or as `inputs`, and not both.")
    if "instances" in content:
        return await answer_instances(request, admitted, content["instances"])
    images = await fields.decode_each(admitted, _columns(content["inputs"]), "input")
    classifications = await classify_each(request, admitted, images, "input")
    return json_response(await admitted.state.slices.work(_write_outputs(admitted.classifier, classifications)))


async def answer_instances(request: Request, admitted: Admitted, instances: Any) -> Response:
    """Answer a list of images with `{"predictions": [...]}`, in order."""
    images = await fields.decode_each(admitted, fields.as_list(instances, "instances"), "instance")
    classifications = await classify_each(request, admitted, images, "instance")
    rows = await admitted.state.slices.work(write_rows(_row(each) for each in classifications))
    return json_response(b'{"predictions":%b}' % rows)


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "vit-serve"}


def _columns(inputs: Any) -> list[Any]:
    """Return the images of `inputs`: a list, one image, or the column of the one input."""
    if isinstance(inputs, dict) and len(inputs) == 1 and isinstance(next(iter(inputs.values())), list):
        (inputs,) = inputs.values()
    return inputs if isinstance(inputs, list) else [inputs]


def _outputs(classifier: Classifier) -> tuple[str, ...]:
    return ("logits",) if classifier.model.activation == "none" else ("probabilities", "logits")


def _row(classification: Classification) -> dict[str, list[float]]:
    logits = {"logits": classification.logits.tolist()}
    return (
        logits if classification.probabilities is None else {"probabilities": classification.probabilities.tolist(), **logits}
    )


def _write_outputs(classifier: Classifier, classifications: Sequence[Classification]) -> Steps[bytes]:
    columns = []
    for name in _outputs(classifier):
        rows = yield from write_rows(getattr(each, name).tolist() for each in classifications)
        columns.append(b"%b:%b" % (to_json(name), rows))
    return b'{"outputs":{%b}}' % b",".join(columns)


def _tensor(dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    sizes = {"dim": [{"size": str(size), "name": ""} for size in shape], "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": sizes, "tensorShape": sizes, "name": ""}


WIRE = Wire("v1", (router,), render_error, prefixes=("/v1/models",))

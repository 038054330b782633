"""`POST /invocations`, where SageMaker, MLflow and TorchServe meet: the request's own shape decides whose it is.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#local-inference-server-spec
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answers import answer, write_result
from app.api.classify import classify_each
from app.api.dependencies import Admitted, AdmittedDep
from app.api.payloads.images import ANY_NAMES
from app.api.problems import ErrorResponse
from app.api.protocols import huggingface, mlflow, tensorflow
from app.api.protocols import json_fields as fields
from app.api.protocols.declarations import declared, json_body
from app.api.protocols.errors import status_of
from app.api.protocols.v2 import infer
from app.api.schemas import EXAMPLE_IMAGE, Problem
from app.api.wire import Wire
from app.errors import MalformedRequest, NotAcceptable, UnsupportedMediaType

router = APIRouter(tags=["invocations"], responses=declared("error", "error_code", "message"))

_BODY = json_body({"inputs": EXAMPLE_IMAGE})

_RAW = frozenset({b"", b"application/octet-stream", b"application/x-image", b"multipart/form-data"})
_ACCEPTABLE = frozenset({"", "*/*", "application/*", "application/json", infer.SAGEMAKER_MEDIA_TYPE})


@router.post("/invocations", openapi_extra=_BODY)
@router.post("/endpoints/{endpoint}/invocations", openapi_extra=_BODY)
async def invoke(request: Request, admitted: AdmittedDep) -> Response:
    """Classify images in the form of SageMaker's, MLflow's or TorchServe's clients. The name of an endpoint is ignored."""
    _check_accept(request)
    admitted.classifier.check_classes()
    media_type = admitted.body.media_type
    if media_type == infer.SAGEMAKER_MEDIA_TYPE.encode():
        return await infer.answer_sagemaker(request, admitted)
    if media_type in _RAW or media_type.startswith(b"image/"):
        return await huggingface.answer_raw(request, admitted, ANY_NAMES)
    if media_type != b"application/json":
        raise UnsupportedMediaType("Send an image as the body, or JSON with one in base64.")
    return await _answer_json(request, admitted, await fields.read_object(admitted))


async def _answer_json(request: Request, admitted: Admitted, content: dict[str, Any]) -> Response:
    if {"dataframe_split", "dataframe_records", "params"} & content.keys():
        return await mlflow.answer(request, admitted, content)
    if "instances" in content:
        fields.refuse_unknown(content, frozenset({"instances", "signature_name"}), "beside `instances`")
        return await tensorflow.answer_instances(request, admitted, content["instances"])
    if "inputs" in content and ("parameters" in content or not _holds_rows(content["inputs"])):
        return await huggingface.answer_json(request, admitted, content)
    if "inputs" in content:
        return await mlflow.answer(request, admitted, content)
    if "image" in content:
        fields.refuse_unknown(content, frozenset({"image"}), "beside `image`")
        return await _answer_natively(request, admitted, content["image"])
    raise MalformedRequest("There is no image: send `inputs`, `instances`, `dataframe_split`, `dataframe_records` or `image`.")


def _holds_rows(inputs: Any) -> bool:
    """Return True for a list, or an object with columns."""
    return isinstance(inputs, list) or (isinstance(inputs, dict) and any(isinstance(each, list) for each in inputs.values()))


async def _answer_natively(request: Request, admitted: Admitted, image: Any) -> Response:
    """Answer as `POST /predict` does by default."""
    images = await fields.decode_each(admitted, [image], "image")
    (classification,) = await classify_each(request, admitted, images, "image")
    written = await admitted.state.slices.work(write_result(classification, top_k=5, vectors=True))
    return answer(admitted.classifier, written)


def _check_accept(request: Request) -> None:
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    if not _ACCEPTABLE.intersection(accepted):
        raise NotAcceptable("Answers are JSON: accept application/json.")


def _render(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    """Render an error with the members that SageMaker's and MLflow's clients look for."""
    content = {"error": problem.detail, "error_code": problem.code.upper(), "message": problem.detail}
    return ErrorResponse(problem, content, status_of(problem), headers)


WIRE = Wire("sagemaker", (router,), _render, paths=frozenset({"/invocations"}), prefixes=("/endpoints",))

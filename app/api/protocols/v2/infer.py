"""Inference of the protocol: from a request's tensors to those of its answer."""

import re
from dataclasses import replace

from fastapi import Request
from starlette.responses import Response

from app.api.classify import classify_each, classify_tensor
from app.api.dependencies import Admitted
from app.api.payloads.compression import deflated
from app.api.protocols.model_names import served_name
from app.api.protocols.v2.request import InferRequest, header_length, read_request
from app.api.protocols.v2.response import Written, asked_outputs, write_response
from app.errors import MalformedRequest
from app.http.numbers import whole_number

SAGEMAKER_MEDIA_TYPE = "application/vnd.sagemaker-triton.binary+json"
"""Media type of a binary request on SageMaker, whose parameter has the length of the JSON."""

_LENGTH_HEADER = "Inference-Header-Content-Length"
_MAX_ACCEPT_CHARACTERS = 200
_COMPRESSED_BYTES = 16 * 1024
"""Size from which an answer is compressed for a client that takes several encodings, as many libraries say by themselves."""


async def answer_infer(request: Request, admitted: Admitted, name: str, *, pixels: bool) -> Response:
    """Answer a request to the model `name`, whose input is pixels or encoded images."""
    admitted.classifier.check_classes()
    admitted.body.allow_compression()
    length = header_length(request.headers.getlist(_LENGTH_HEADER))
    written = await _answer(request, admitted, name, length, pixels=pixels)
    headers = {"Vary": "Accept-Encoding"}
    if written.json_bytes is not None:
        headers[_LENGTH_HEADER] = str(written.json_bytes)
    media_type = "application/json" if written.json_bytes is None else "application/octet-stream"
    content = written.content
    if coding := _coding(request.headers.get("accept-encoding", ""), len(content)):
        content, headers["Content-Encoding"] = await admitted.state.slices.work(deflated(content, coding)), coding
    return Response(content, 200, headers, media_type)


async def answer_sagemaker(request: Request, admitted: Admitted) -> Response:
    """Answer a binary request as Triton's container does on SageMaker."""
    length = whole_number(admitted.body.parameters.get(b"json-header-size", b"").decode("latin-1"))
    if length is None:
        raise MalformedRequest("The media type must have a parameter json-header-size, a whole number.")
    written = await _answer(request, admitted, served_name(admitted.classifier), length, pixels=False)
    if written.json_bytes is None:
        return Response(written.content, media_type="application/json")
    return Response(written.content, media_type=f"{SAGEMAKER_MEDIA_TYPE};json-header-size={written.json_bytes}")


async def _answer(request: Request, admitted: Admitted, name: str, json_bytes: int | None, *, pixels: bool) -> Written:
    asked = await read_request(admitted, json_bytes, raw_pixels=pixels)
    outputs = asked_outputs(asked, admitted.classifier, pixels=pixels)
    in_time = _with_deadline(request, admitted, asked)
    if asked.pixels:
        classifications = await classify_tensor(request, in_time, asked.pixels, "image")
    else:
        classifications = await classify_each(request, in_time, asked.images, "image")
    return await admitted.state.slices.work(write_response(name, asked.id, outputs, classifications))


def _with_deadline(request: Request, admitted: Admitted, asked: InferRequest) -> Admitted:
    """Return the request with the deadline that it asks for, if that is earlier."""
    if not asked.timeout_us:
        return admitted
    return replace(admitted, deadline=min(admitted.deadline, request.state.arrival + asked.timeout_us / 1e6))


def _coding(accepted: str, size: int) -> str | None:
    """Return the coding of an answer: gzip or deflate, the first of the best quality; None to leave it as it is."""
    named = [part.split(";", 1) for part in accepted.lower()[:_MAX_ACCEPT_CHARACTERS].split(",") if part.strip()]
    qualities = {coding[0].strip(): _quality(coding[1:]) for coding in named}
    offered = [coding for coding in ("gzip", "deflate") if qualities.get(coding, 0.0) > 0]
    if not offered or (len(named) > 1 and size < _COMPRESSED_BYTES):
        return None
    best = max(offered, key=lambda coding: (qualities[coding], -list(qualities).index(coding)))
    return best if qualities[best] >= qualities.get("identity", 0.0) else None


def _quality(parameters: list[str]) -> float:
    if not parameters:
        return 1.0
    sent = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", parameters[0])
    return float(sent[1]) if sent else 0.0

"""Requests of every protocol with the same images, to compare with `POST /predict` in the same form."""

import base64
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from app.bench.load import Target
from app.decoding.image import ImageDecoder
from benchmarks.inside import FORMATS
from model.checkpoints.checkpoint import load_checkpoint

MODEL = "measured"
"""Alias under which the model is served."""

_JSON, _RAW = "application/json", "image/jpeg"


def targets(port: int, model: Path, images: Sequence[bytes]) -> dict[str, tuple[Target, str]]:
    """Return a target for each protocol and form, with the name of the native one to compare it with.

    Args:
        port: port of a server that knows the model as `MODEL`, and Vertex AI's predictions as `/vertex`.
        model: checkpoint, for the pixels of its input.
        images: encoded images.
    """
    raw, json64, batch = "/predict, raw", "/predict, JSON", "/predict/batch, 8 in JSON"

    def each(path: str, body: Callable[[bytes], bytes], content_type: str) -> Target:
        return Target(port, path, [body(image) for image in images], content_type)

    def encoded(path: str, form: Callable[[str], object]) -> Target:
        return each(path, lambda image: json.dumps(form(base64.b64encode(image).decode())).encode(), _JSON)

    def eight(path: str, form: Callable[[list[str]], object]) -> Target:
        return encoded(path, lambda image: form([image] * 8))

    infer = f"/v2/models/{MODEL}/infer"
    return {
        raw: (each("/predict?vectors=false", bytes, _RAW), raw),
        "Hugging Face, raw": (each("/", bytes, _RAW), raw),
        "SageMaker, raw": (each("/invocations", bytes, _RAW), raw),
        "TorchServe, raw": (each(f"/predictions/{MODEL}", bytes, _RAW), raw),
        "v2, binary": (_binary(port, infer, [_elements(image) for image in images], _bytes_tensor), raw),
        "v2, UINT8 pixels": (_binary(port, f"/v2/models/{MODEL}-pixels/infer", _pixels(model, images), _pixel_tensor), raw),
        json64: (encoded("/predict?vectors=false", lambda image: {"image": image}), json64),
        "Hugging Face, JSON": (encoded("/", lambda image: {"inputs": image}), json64),
        "v1, JSON": (encoded(f"/v1/models/{MODEL}:predict", lambda image: {"instances": [{"b64": image}]}), json64),
        "MLflow, JSON": (encoded("/invocations", lambda image: {"inputs": [image]}), json64),
        "Vertex AI, JSON": (encoded("/vertex", lambda image: {"instances": [{"content": image}]}), json64),
        "v2, JSON": (encoded(infer, lambda image: {"inputs": [{**_bytes_tensor(0), "data": [image]}]}), json64),
        batch: (eight("/predict/batch?vectors=false", lambda eight: {"images": eight}), batch),
        "v1, 8 in JSON": (eight(f"/v1/models/{MODEL}:predict", lambda eight: {"instances": eight}), batch),
    }


def _elements(image: bytes) -> bytes:
    return struct.pack("<I", len(image)) + image


def _pixels(model: Path, images: Sequence[bytes]) -> list[bytes]:
    """Return the pixels of the model's input, as the service decodes them."""
    checkpoint = load_checkpoint(model)
    decoder = ImageDecoder(checkpoint.preprocessing, formats=FORMATS, max_bytes=10**9, max_pixels=10**9, exact=True)
    return [np.ascontiguousarray(decoder.decode(image)).tobytes() for image in images]


def _bytes_tensor(size: int) -> dict[str, object]:
    sized = {"parameters": {"binary_data_size": size}} if size else {}
    return {"name": "image", "shape": [1, 1], "datatype": "BYTES", **sized}


def _pixel_tensor(size: int) -> dict[str, object]:
    side = round((size / 3) ** 0.5)
    shape = [1, 3, side, side]
    return {"name": "pixels", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": size}}


def _binary(port: int, path: str, tensors: Sequence[bytes], describe: Callable[[int], dict[str, object]]) -> Target:
    """Return a target of binary requests, each with JSON of the same length, which a header tells."""
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    heads = [json.dumps({"inputs": [describe(len(tensor))], "outputs": outputs}).encode() for tensor in tensors]
    length = max(map(len, heads))
    bodies = [head.ljust(length) + tensor for head, tensor in zip(heads, tensors, strict=True)]
    return Target(port, path, bodies, "application/octet-stream", {"Inference-Header-Content-Length": str(length)})

"""Bundled model: predictions for real photographs, and logits equal to transformers'."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engines.hardware import has_bfloat16, has_vnni
from app.serving.offline import run
from app.settings import BUNDLED_MODEL
from tests.support.bundled_model import reference_logits, service_answers
from tests.support.models import ROOT, encode, random_image
from tests.support.server import Server, running_server

PHOTOS = ROOT / "examples" / "images"
CAT = (PHOTOS / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"files": {"image": CAT}}, id="multipart"),
        pytest.param({"content": CAT, "headers": {"Content-Type": "image/jpeg"}}, id="raw"),
        pytest.param({"json": {"image": base64.b64encode(CAT).decode()}}, id="json"),
    ],
)
def test_cat_photo_is_a_cat(server: Server, request_: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/predict", timeout=60, **request_).json()
    assert answer["model"] == "vit-small-everyday64"
    assert answer["predictions"][0]["label"] in {"tabby cat", "Persian cat"}


def test_cpu_default_is_openvino(server: Server) -> None:
    model = httpx.get(f"{server.url}/model", timeout=60).json()
    assert (model["engine"], model["device"], model["dtype"], model["max_batch_size"]) == ("openvino", "cpu", "float32", 7)


def test_espresso_photo_is_an_espresso(server: Server) -> None:
    answer = httpx.post(f"{server.url}/predict", content=(PHOTOS / "espresso.jpg").read_bytes(), timeout=60).json()
    assert answer["predictions"][0]["label"] == "espresso"


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_logits_match_transformers(tmp_path: Path, engine: str) -> None:
    (tmp_path / "alpha.png").write_bytes(encode(random_image(0, 300, 200).convert("RGBA").rotate(20)))
    (tmp_path / "grey.jpg").write_bytes(encode(random_image(1, 64, 64).convert("L"), "JPEG"))
    (tmp_path / "portrait.webp").write_bytes(encode(random_image(2, 120, 400), "WEBP"))
    paths = [PHOTOS / "cat.jpg", PHOTOS / "espresso.jpg", *sorted(tmp_path.iterdir())]
    images = [path.read_bytes() for path in paths]
    answers = run(service_answers(images, engine=engine, exact_decode=True))
    logits = np.stack([answer.logits for answer in answers])
    np.testing.assert_allclose(logits, reference_logits(paths), rtol=0, atol=1e-3)


def test_quick_decoding_changes_little() -> None:
    images = [(PHOTOS / name).read_bytes() for name in ("cat.jpg", "espresso.jpg")]
    quick, exact = (run(service_answers(images, exact_decode=exact)) for exact in (False, True))
    for one, other in zip(quick, exact, strict=True):
        assert one.top(1)[0].label == other.top(1)[0].label
        assert one.probabilities is not None
        assert other.probabilities is not None
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("int8", marks=pytest.mark.skipif(not has_vnni(), reason="int8 is for CPUs with VNNI")),
        pytest.param("bfloat16", marks=pytest.mark.skipif(not has_bfloat16(), reason="for CPUs with AVX512_BF16")),
    ],
)
def test_rounding_server_answers_nearly_the_same(server: Server, dtype: str) -> None:
    with running_server(dtype=dtype) as rounding:
        model = httpx.get(f"{rounding.url}/model", timeout=60).json()
        assert (model["dtype"], model["engine"]) == (dtype, "openvino")
        for name in ("cat.jpg", "espresso.jpg"):
            image_bytes = (PHOTOS / name).read_bytes()
            one, other = (
                httpx.post(f"{each.url}/predict", content=image_bytes, timeout=60).json() for each in (rounding, server)
            )
            assert one["predictions"][0]["label"] == other["predictions"][0]["label"]
            assert one["logits"] != other["logits"]
            np.testing.assert_allclose(one["probabilities"], other["probabilities"], rtol=0, atol=0.1)


def test_labels_are_64_everyday_things() -> None:
    config = json.loads((BUNDLED_MODEL / "config.json").read_text())
    assert len(config["id2label"]) == 64
    assert {"tabby cat", "pizza", "teapot", "sports car"} <= set(config["id2label"].values())


def test_weights_are_half_precision() -> None:
    assert 42e6 < (BUNDLED_MODEL / "model.safetensors").stat().st_size < 46e6

"""POST /embed and /v1/embeddings: the features of each model's own library."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.app.conftest import OpenClient
from tests.support.library_models import write_swin
from tests.support.models import ROOT, png
from tests.support.predict import assert_problem, base64_of
from tests.support.weights import randomise

import timm  # isort: skip
import transformers  # isort: skip
from timm.data.config import resolve_model_data_config  # isort: skip
from timm.data.transforms_factory import create_transform  # isort: skip
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # isort: skip

CAT = (ROOT / "examples" / "images" / "cat.jpg").read_bytes()
SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 16,
}
PLAIN = SMALL | {"intermediate_size": 192}
PROCESSOR = ViTImageProcessorPil(size={"height": 64, "width": 64})
Pool = Callable[[Any], torch.Tensor]


def token(output: Any) -> torch.Tensor:
    return output.last_hidden_state[:, 0]


def mean_of_patches(output: Any) -> torch.Tensor:
    return output.last_hidden_state[:, 1:].mean(dim=1)


def pooled(output: Any) -> torch.Tensor:
    return output.pooler_output


MODELS: dict[str, tuple[str, dict[str, Any], str, dict[str, Pool]]] = {
    "ViT": ("ViTForImageClassification", PLAIN, "vit", {"token": token, "avg": mean_of_patches}),
    "DINOv2": (
        "Dinov2ForImageClassification",
        SMALL,
        "dinov2",
        {"token+avg": lambda o: torch.cat((token(o), mean_of_patches(o)), 1), "token": token, "avg": mean_of_patches},
    ),
    "BEiT": ("BeitForImageClassification", PLAIN | {"use_relative_position_bias": True}, "beit", {"avg": pooled}),
    "I-JEPA": ("IJepaForImageClassification", PLAIN, "ijepa", {"avg": lambda o: o.last_hidden_state.mean(dim=1)}),
    "DINOv3 encoder": ("DINOv3ViTModel", PLAIN | {"num_register_tokens": 2}, "", {"token": pooled}),
    "SigLIP": (
        "SiglipForImageClassification",
        {"vision_config": PLAIN},
        "vision_model",
        {"avg": lambda o: o.last_hidden_state.mean(dim=1), "map": pooled},
    ),
    "SigLIP encoder": ("SiglipVisionModel", PLAIN, "", {"map": pooled}),
    "CLIP with projection": (
        "CLIPVisionModelWithProjection",
        PLAIN | {"projection_dim": 40},
        "",
        {"projection": lambda o: o.image_embeds},
    ),
}
"""Class of transformers, its configuration, the attribute that is its encoder, and features by name, the usual ones first."""


def save(name: str, directory: Path) -> Callable[[bytes], dict[str, np.ndarray]]:
    """Save a model, and return its library's features of an image by name."""
    architecture, sizes, encoder, pools = MODELS[name]
    model_class = getattr(transformers, architecture)
    model = randomise(model_class(model_class.config_class(**sizes)))
    model.save_pretrained(directory)
    content = {**PROCESSOR.to_dict(), "image_processor_type": "ViTImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(content))

    def features(image_bytes: bytes) -> dict[str, np.ndarray]:
        with Image.open(io.BytesIO(image_bytes)) as image, torch.no_grad():
            pixels = PROCESSOR(image.convert("RGB"), return_tensors="pt")
            output = (getattr(model, encoder) if encoder else model)(**pixels)
            return {pooling: pool(output)[0].numpy() for pooling, pool in pools.items()}

    return features


def assert_near(found: Any, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", MODELS)
async def test_features_equal_the_librarys(open_client: OpenClient, tmp_path: Path, name: str, engine: str) -> None:
    expected = save(name, tmp_path / "model")(CAT)
    async with open_client(model=tmp_path / "model", exact_decode=True, engine=engine, cache_dir=tmp_path) as client:
        usual = (await client.post("/embed", content=CAT)).json()
        assert usual["pooling"] == next(iter(expected))
        for pooling, vector in expected.items():
            answer = (await client.post("/embed", params={"pooling": pooling}, content=CAT)).json()
            assert (answer["pooling"], answer["size"], answer["normalized"]) == (pooling, len(vector), False)
            assert_near(answer["embedding"], vector, 1e-4 if engine == "torch" else 1e-3)


TIMM: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_224": {"embed_dim": 96, "depth": 2, "num_heads": 3},
    "beit_base_patch16_224": {"embed_dim": 96, "depth": 2, "num_heads": 3},
    "eva02_base_patch14_448": {"embed_dim": 96, "depth": 2, "num_heads": 3},
    "vit_base_patch16_dinov3": {"embed_dim": 96, "depth": 2, "num_heads": 3},
    "vit_medium_patch16_gap_240": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
}
"""Names of timm, made small."""


@pytest.mark.parametrize("num_classes", [5, 0])
@pytest.mark.parametrize("architecture", TIMM)
async def test_features_equal_timms(open_client: OpenClient, tmp_path: Path, architecture: str, num_classes: int) -> None:
    sizes = TIMM[architecture]
    model = randomise(timm.create_model(architecture, num_classes=num_classes, **sizes))
    timm.models.save_for_hf(model, str(tmp_path / "model"), safe_serialization=True, model_args=sizes)
    config = resolve_model_data_config(model)
    with Image.open(io.BytesIO(CAT)) as image, torch.no_grad():
        pixels = create_transform(**config)(image.convert("RGB"))[None]
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)[0].numpy()
    async with open_client(model=tmp_path / "model", exact_decode=True) as client:
        answer = (await client.post("/embed", content=CAT)).json()
    assert_near(answer["embedding"], expected)
    assert (answer["pooling"] == "token+dist") == ("distilled" in architecture)


async def test_forms_agree(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/embed", content=png(0))).json()
    assert list(answer) == ["model", "pooling", "normalized", "size", "embedding"]
    vector = np.array(answer["embedding"], np.float32)
    for form in ({"files": {"image": png(0)}}, {"json": {"image": base64_of(png(0))}}):
        assert (await client.post("/embed", **form)).json() == answer
    for accepted in ("application/octet-stream", "application/octet-stream, */*;q=0.1", "Application/Octet-Stream;q=0.5"):
        raw = await client.post("/embed", content=png(0), headers={"Accept": accepted})
        assert raw.headers["content-type"] == "application/octet-stream"
        np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4"), vector)
    for accepted in ("*/*", "application/json", "application/octet-stream;q=0", "application/octet-streams"):
        answered = await client.post("/embed", content=png(0), headers={"Accept": accepted})
        assert answered.headers["content-type"] == "application/json"
    unit = (await client.post("/embed?normalize=true", content=png(0))).json()
    assert unit["normalized"]
    np.testing.assert_allclose(unit["embedding"], vector / np.linalg.norm(vector), rtol=1e-5)


async def test_bad_image_in_a_batch_fails_alone(client: httpx.AsyncClient) -> None:
    images = [base64_of(png(0)), base64_of(b"hello there"), base64_of(png(1))]
    answer = (await client.post("/embed/batch?normalize=true&pooling=avg", json={"images": images})).json()
    assert (answer["pooling"], answer["size"], answer["normalized"]) == ("avg", 32, True)
    good, bad, other = answer["results"]
    assert bad["error"]["code"] == "unsupported_image_format"
    alone = (await client.post("/embed?normalize=true&pooling=avg", content=png(1))).json()["embedding"]
    np.testing.assert_allclose(other["embedding"], alone, atol=1e-5)
    assert np.linalg.norm(good["embedding"]) == pytest.approx(1, abs=1e-5)


async def test_unknown_pooling_names_the_known(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.post("/embed?pooling=map", content=png(0)), 422, "invalid_parameter")
    assert "token+avg, token, avg" in problem["detail"]


async def test_switched_off_features_are_501(open_client: OpenClient) -> None:
    async with open_client(embed=False) as client:
        for path in ("/embed", "/embed/batch"):
            problem = assert_problem(await client.post(path, content=png(0)), 501, "no_features")
            assert "VIT_EMBED" in problem["detail"]
        assert (await client.get("/model")).json()["features"] == []
        assert (await client.post("/predict", content=png(0))).status_code == 200


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by torch at import
@pytest.mark.parametrize("options", [{"engine": "torch"}, {"engine": "openvino"}, {"compile": True}], ids=str)
async def test_encoder_starts_without_features(open_client: OpenClient, tmp_path: Path, options: dict[str, Any]) -> None:
    save("SigLIP encoder", tmp_path / "model")
    async with open_client(model=tmp_path / "model", embed=False, cache_dir=tmp_path, max_batch_size=1, **options) as client:
        assert_problem(await client.post("/embed", content=png(0)), 501, "no_features")
        assert_problem(await client.post("/predict", content=png(0)), 501, "no_classes")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.usefixtures("converts_beside_torchvision")
async def test_library_runs_for_features_too(open_client: OpenClient, tmp_path: Path, engine: str) -> None:
    model: Any = transformers.SwinForImageClassification.from_pretrained(write_swin(tmp_path / "model"))
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    with Image.open(io.BytesIO(CAT)) as image, torch.no_grad():
        pixels = processor(image.convert("RGB"), return_tensors="pt")
        expected = model.eval().swin(**pixels).pooler_output[0].numpy()
    async with open_client(model=tmp_path / "model", exact_decode=True, engine=engine, cache_dir=tmp_path) as client:
        assert (await client.get("/model")).json()["features"] == [{"name": "pooled", "size": 16}]
        answer = (await client.post("/embed", content=CAT)).json()
        assert (answer["pooling"], answer["size"]) == ("pooled", 16)
        assert_near(answer["embedding"], expected, 1e-4 if engine == "torch" else 1e-3)
        problem = assert_problem(await client.post("/embed?pooling=avg", content=CAT), 422, "invalid_parameter")
        assert problem["detail"].endswith("this model has pooled.")


async def test_library_without_features_says_why(
    open_client: OpenClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> str:
        raise ValueError("its classifier is odd")

    model = write_swin(tmp_path)
    async with open_client(model=model, embed=False) as client:
        problem = assert_problem(await client.post("/embed", content=png(0)), 501, "no_features")
        assert "VIT_EMBED is false" in problem["detail"]
    monkeypatch.setattr("model.library.library_model.find_classifier", refuse)
    async with open_client(model=model) as client:
        problem = assert_problem(await client.post("/embed", content=png(0)), 501, "no_features")
        assert problem["detail"].endswith("gives no features: its classifier is odd.")
        assert (await client.post("/predict", content=png(0))).status_code == 200


async def test_logits_do_not_change(open_client: OpenClient) -> None:
    answers = []
    for embed in (True, False):
        async with open_client(embed=embed) as client:
            answers.append((await client.post("/predict", content=png(0))).json()["logits"])
    assert answers[0] == answers[1]


async def test_openais_form(client: httpx.AsyncClient) -> None:
    expected = (await client.post("/embed", content=png(0))).json()["embedding"]
    uri = f"data:image/png;base64,{base64_of(png(0))}"
    content = {"model": "tiny-dinov2", "input": [uri, base64_of(png(0))], "encoding_format": "base64"}
    answer = (await client.post("/v1/embeddings", json=content)).json()
    assert (answer["object"], answer["model"], [each["index"] for each in answer["data"]]) == ("list", "tiny-dinov2", [0, 1])
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]]
    np.testing.assert_allclose(vectors, [expected, expected], atol=1e-5)
    plain = (await client.post("/v1/embeddings", json={"model": "tiny-dinov2", "input": uri, "dimensions": 64})).json()
    np.testing.assert_allclose(plain["data"][0]["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ({"model": "tiny-dinov2", "input": "hello"}, 400, "base64"),
        ({"model": "tiny-dinov2", "input": "https://example.org/cat.jpg"}, 400, "never fetched"),
        ({"model": "tiny-dinov2", "input": []}, 400, "no input"),
        ({"model": "tiny-dinov2"}, 400, "input"),
        ({"input": "aGVsbG8="}, 400, "model"),
        ({"model": "nope", "input": "aGVsbG8="}, 404, "no model"),
        ({"model": "tiny-dinov2", "input": "aGVsbG8=", "dimensions": 5}, 400, "dimensions"),
        ({"model": "tiny-dinov2", "input": "aGVsbG8=", "encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
async def test_openais_errors(client: httpx.AsyncClient, content: Any, status: int, says: str) -> None:
    response = await client.post("/v1/embeddings", json=content)
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert says in error["message"]

"""The clients that people have, pointed at a server: their answers are those of `POST /predict`."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import huggingface_hub
import numpy as np
import openai
import ovmsclient
import pytest
import tritonclient.http
import tritonclient.http.aio
from botocore.config import Config
from botocore.exceptions import ClientError
from tritonclient.utils import InferenceServerException

from tests.support.models import ROOT
from tests.support.server import Server, running_server

CAT = ROOT / "examples" / "images" / "cat.jpg"
JAVASCRIPT = Path(__file__).parent / "javascript"

REFUSED: list[tuple[str, tuple[Any, ...]]] = [
    ("load_model", ("vit",)),
    ("unload_model", ("vit",)),
    ("get_trace_settings", ()),
    ("update_trace_settings", ()),
    ("get_log_settings", ()),
    ("update_log_settings", ({"log_info": False},)),
    ("register_system_shared_memory", ("r", "/k", 10)),
    ("register_cuda_shared_memory", ("r", base64.b64encode(b"handle"), 0, 10)),
]
"""Calls of Triton's client that are refused with a sentence."""

ANSWERED: list[tuple[str, tuple[Any, ...], Any]] = [
    ("get_system_shared_memory_status", (), []),
    ("get_cuda_shared_memory_status", (), []),
    ("unregister_system_shared_memory", (), None),
    ("unregister_cuda_shared_memory", (), None),
    ("is_server_live", (), True),
    ("is_server_ready", (), True),
    ("is_model_ready", ("vit",), True),
    ("is_model_ready", ("vit", "1"), True),
    ("is_model_ready", ("nope",), False),
]


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, model_aliases="vit", api_keys="secret", engine="torch") as server:
        yield server


@pytest.fixture(scope="module")
def native(server: Server) -> dict[str, Any]:
    """The answer of `POST /predict`."""
    response = httpx.post(f"{server.url}/predict", content=CAT.read_bytes(), headers={"X-API-Key": "secret"})
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def address(server: Server) -> str:
    return server.url.removeprefix("http://")


KEY = {"X-API-Key": "secret"}
"""Headers of a call; copy them, because Triton's client writes into what it is given."""


def image_input(module: Any) -> Any:
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[CAT.read_bytes()]], dtype=np.object_))
    return tensor


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_tritons_client_infers(address: str, native: dict[str, Any], binary: bool, coding: str | None) -> None:
    triton = tritonclient.http
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "probabilities", "labels")]
    with triton.InferenceServerClient(address) as client:
        result = client.infer(
            "vit",
            [image_input(triton)],
            outputs=outputs,
            request_id="mine",
            headers={**KEY},
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
            parameters={"top_k": 5},
            timeout=10_000_000,
            priority=1,
        )
        every = client.infer("vit", [image_input(triton)], headers={**KEY})
        waited = client.async_infer("vit", [image_input(triton)], headers={**KEY}).get_result()
    assert result.get_response()["id"] == "mine"
    np.testing.assert_allclose(result.as_numpy("logits")[0], native["logits"], rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("probabilities")[0], native["probabilities"], rtol=1e-5)
    best = [prediction["label"] for prediction in native["predictions"]]
    labels = result.as_numpy("labels")[0].tolist()
    assert [label.decode() if isinstance(label, bytes) else label for label in labels[:5]] == best
    for other in (every, waited):
        np.testing.assert_array_equal(other.as_numpy("logits"), result.as_numpy("logits"))


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritons_client_sends_pixels(address: str, datatype: str, binary: bool) -> None:
    triton = tritonclient.http
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 28, 28)).astype(np.uint8 if datatype == "UINT8" else np.float32)
    tensor = triton.InferInput("pixels", list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    with triton.InferenceServerClient(address) as client:
        result = client.infer("vit-pixels", [tensor], headers={**KEY})
        ranked = client.infer(
            "vit-pixels", [tensor], outputs=[triton.InferRequestedOutput("logits", class_count=2)], headers={**KEY}
        )
    logits = result.as_numpy("logits")
    assert logits.shape == (3, 10)
    best = int(np.argmax(logits[0]))
    assert ranked.as_numpy("logits")[0][0].decode().split(":")[1:] == [str(best), f"class {best}"]


def test_tritons_client_describes(address: str) -> None:
    with tritonclient.http.InferenceServerClient(address) as client:
        assert "statistics" in client.get_server_metadata(headers={**KEY})["extensions"]
        assert client.get_model_metadata("vit", "1", headers={**KEY})["outputs"][0]["shape"] == [-1, 10]
        assert client.get_model_config("vit-pixels", headers={**KEY})["input"][0]["dims"] == [3, 28, 28]
        assert client.get_inference_statistics("vit", headers={**KEY})["model_stats"][0]["inference_count"] >= 0
        assert "vit-pixels" in [model["name"] for model in client.get_model_repository_index(headers={**KEY})]
        for name, arguments, expected in ANSWERED:
            assert getattr(client, name)(*arguments, headers={**KEY}) == expected
        for name, arguments in REFUSED:
            with pytest.raises(InferenceServerException, match=r"support|start|admin key"):
                getattr(client, name)(*arguments, headers={**KEY})
        with pytest.raises(InferenceServerException, match="Send a valid API key"):
            client.infer("vit", [image_input(tritonclient.http)])
        with pytest.raises(InferenceServerException, match="no model 'nope'"):
            client.infer("nope", [image_input(tritonclient.http)], headers={**KEY})


def test_tritons_client_sends_a_password(address: str) -> None:
    from tritonclient.http.auth import BasicAuth

    with tritonclient.http.InferenceServerClient(address) as client:
        client.register_plugin(BasicAuth("anybody", "secret"))
        assert client.infer("vit", [image_input(tritonclient.http)]).as_numpy("logits").shape == (1, 10)


async def test_tritons_asyncio_client(address: str, native: dict[str, Any]) -> None:
    triton = tritonclient.http.aio
    async with triton.InferenceServerClient(address) as client:
        for binary in (True, False):
            outputs = [triton.InferRequestedOutput("logits", binary_data=binary)]
            result = await client.infer("vit", [image_input(triton)], outputs=outputs, headers={**KEY})
            np.testing.assert_allclose(result.as_numpy("logits")[0], native["logits"], rtol=1e-5)
        assert (await client.get_model_metadata("vit", headers={**KEY}))["name"] == "vit"
        assert (await client.get_model_config("vit", headers={**KEY}))["name"] == "vit"
        for name, arguments, expected in ANSWERED:
            assert await getattr(client, name)(*arguments, headers={**KEY}) == expected
        for name, arguments in REFUSED:
            with pytest.raises(InferenceServerException, match=r"support|start|admin key"):
                await getattr(client, name)(*arguments, headers={**KEY})


def expected_labels(native: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(each["label"], pytest.approx(each["probability"], abs=1e-6)) for each in native["predictions"]]


def test_hugging_faces_client(server: Server, native: dict[str, Any]) -> None:
    client = huggingface_hub.InferenceClient(model=server.url, token="secret")
    for image in (str(CAT), CAT.read_bytes()):
        answer = client.image_classification(image)
        assert [(each.label, each.score) for each in answer] == expected_labels(native)
    (best,) = client.image_classification(CAT.read_bytes(), top_k=1, function_to_apply="none")
    assert best.score == pytest.approx(native["predictions"][0]["logit"], rel=1e-5)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match=r"not an image|format"):
        client.image_classification(b"hello there")
    probing = huggingface_hub.InferenceClient(server.url, provider="hf-inference", token="secret")
    assert probing.health_check()
    assert probing.get_endpoint_info()["model_id"] == "tiny-dinov2"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own request
async def test_hugging_faces_asyncio_client(server: Server, native: dict[str, Any]) -> None:
    async with huggingface_hub.AsyncInferenceClient(model=f"{server.url}/?top_k=2", token="secret") as client:
        answer = await client.image_classification(CAT.read_bytes())
    assert [(each.label, each.score) for each in answer] == expected_labels(native)[:2]


def test_ovms_client(tiny_checkpoint: Path, native: dict[str, Any]) -> None:
    with running_server(model=tiny_checkpoint, engine="torch") as server:
        client = ovmsclient.make_http_client(server.url.removeprefix("http://"))
        outputs = client.predict(inputs={"image": [CAT.read_bytes()]}, model_name="tiny-dinov2")
        np.testing.assert_allclose(outputs["logits"][0], native["logits"], rtol=1e-5)
        assert client.get_model_status("tiny-dinov2")[1]["state"] == "AVAILABLE"
        assert client.get_model_metadata("tiny-dinov2")["outputs"]["logits"]["shape"] == [-1, 10]


def test_sagemakers_client(server: Server, tiny_checkpoint: Path, native: dict[str, Any]) -> None:
    with running_server(model=tiny_checkpoint, engine="torch") as open_server:
        client = boto3.client(
            "sagemaker-runtime",
            endpoint_url=open_server.url,
            region_name="eu-west-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(retries={"max_attempts": 1}),
        )
        answer = client.invoke_endpoint(
            EndpointName="vit", Body=CAT.read_bytes(), ContentType="image/jpeg", Accept="application/json"
        )
        ranked = json.loads(answer["Body"].read())
        assert [(each["label"], each["score"]) for each in ranked] == expected_labels(native)
        with pytest.raises(ClientError, match=r"415|Unsupported"):
            client.invoke_endpoint(EndpointName="vit", Body=b"a,b", ContentType="text/csv")


def test_openais_client(server: Server) -> None:
    expected = httpx.post(f"{server.url}/embed", content=CAT.read_bytes(), headers=KEY).json()["embedding"]
    uri = f"data:image/jpeg;base64,{base64.b64encode(CAT.read_bytes()).decode()}"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        for answer in (
            client.embeddings.create(model="vit", input=[uri, uri]),
            client.embeddings.create(model="vit", input=[uri, uri], encoding_format="float"),
        ):
            assert [each.index for each in answer.data] == [0, 1]
            np.testing.assert_allclose(answer.data[1].embedding, expected, atol=1e-5)
        assert "vit" in [model.id for model in client.models.list()]
        assert client.models.retrieve("vit").owned_by == "vit-serve"
        with pytest.raises(openai.BadRequestError, match="base64"):
            client.embeddings.create(model="vit", input="hello")
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.embeddings.create(model="nope", input=uri)
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="vit", input=uri)


@pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules").is_dir(),
    reason="needs Node, and `npm install` in tests/app/api/protocols/javascript",
)
def test_hugging_faces_javascript_client(server: Server, native: dict[str, Any]) -> None:
    done = subprocess.run(
        ["node", JAVASCRIPT / "classify.mjs", f"{server.url}/?top_k=2", CAT],
        env={**os.environ, "VIT_KEY": "secret"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [(each["label"], each["score"]) for each in json.loads(done.stdout)] == expected_labels(native)[:2]

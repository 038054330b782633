"""Clients whose packages are hundreds of megabytes: `pip install '.[wires-all]'`; without them these tests are skipped."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.models import ROOT
from tests.support.server import Server, running_server

CAT = (ROOT / "examples" / "images" / "cat.jpg").read_bytes()
CAT64 = base64.b64encode(CAT).decode()
VERTEX_ROUTE = "/v1/projects/p/locations/l/endpoints/1:predict"

pytestmark = pytest.mark.filterwarnings("default")  # these packages warn when they are imported


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, engine="torch", vertex_predict_route=VERTEX_ROUTE) as server:
        yield server


@pytest.fixture(scope="module")
def native(server: Server) -> dict[str, Any]:
    """The answer of `POST /predict`."""
    answer: dict[str, Any] = httpx.post(f"{server.url}/predict", content=CAT).json()
    return answer


async def test_kserves_client_speaks_v1(server: Server, native: dict[str, Any]) -> None:
    kserve = pytest.importorskip("kserve")
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1")) as client:
        answer = await client.infer(server.url, {"instances": [{"b64": CAT64}]}, model_name="tiny-dinov2")
        np.testing.assert_allclose(answer["predictions"][0]["logits"], native["logits"], rtol=1e-5)
        assert await client.is_server_live(server.url)
        assert await client.is_model_ready(server.url, "tiny-dinov2")
        with pytest.raises(httpx.HTTPStatusError, match="instance 1: "):
            await client.infer(server.url, {"instances": [CAT64, "!"]}, model_name="tiny-dinov2")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_kserves_client_speaks_v2(server: Server, native: dict[str, Any], binary: bool) -> None:
    kserve = pytest.importorskip("kserve")
    image = kserve.InferInput("image", [1], "BYTES", data=None if binary else [CAT64])
    if binary:
        image.set_data_from_numpy(np.array([CAT], dtype=np.object_), binary_data=True)
    request = kserve.InferRequest("tiny-dinov2", [image])
    async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as client:
        answer = await client.infer(server.url, request, model_name="tiny-dinov2")
        np.testing.assert_allclose(answer.outputs[0].as_numpy()[0], native["logits"], rtol=1e-5)
        assert await client.is_server_live(server.url)
        assert await client.is_server_ready(server.url)
        assert await client.is_model_ready(server.url, "tiny-dinov2-pixels")
        pixels = kserve.InferInput("pixels", [1, 3, 28, 28], "UINT8")
        pixels.set_data_from_numpy(np.zeros((1, 3, 28, 28), np.uint8), binary_data=binary)
        request = kserve.InferRequest("tiny-dinov2-pixels", [pixels])
        answer = await client.infer(server.url, request, model_name="tiny-dinov2-pixels")
        assert answer.outputs[0].shape == [1, 10]


def test_mlflows_client(server: Server, native: dict[str, Any]) -> None:
    scoring = pytest.importorskip("mlflow.pyfunc.scoring_server.client")
    pandas = pytest.importorskip("pandas")
    host, port = server.url.removeprefix("http://").split(":")
    client = scoring.ScoringServerClient(host, port)
    client.wait_server_ready()
    assert client.get_version().count(".") == 2
    best = native["predictions"][0]
    for data in (pandas.DataFrame({"image": [CAT64, CAT64]}), [CAT64, CAT64]):
        predictions = client.invoke(data).get_predictions()
        assert predictions["label"].tolist() == [best["label"]] * 2
        assert predictions["score"][0] == pytest.approx(best["probability"], abs=1e-6)
    ranked = client.invoke([CAT64], params={"top_k": 2})
    assert "class" in str(ranked.get_predictions())


def test_googles_client(server: Server, native: dict[str, Any]) -> None:
    pytest.importorskip("google.cloud.aiplatform_v1")
    from google.api_core.exceptions import BadRequest
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.aiplatform_v1.services.prediction_service import PredictionServiceClient
    from google.cloud.aiplatform_v1.services.prediction_service.transports import PredictionServiceRestTransport

    transport = PredictionServiceRestTransport(
        host=server.url.removeprefix("http://"), credentials=AnonymousCredentials(), url_scheme="http"
    )
    client = PredictionServiceClient(transport=transport)
    endpoint = "projects/p/locations/l/endpoints/1"
    answer = client.predict(endpoint=endpoint, instances=[{"content": CAT64}], parameters={"maxPredictions": 3})
    prediction = dict(answer.predictions[0])
    assert list(prediction["displayNames"]) == [each["label"] for each in native["predictions"][:3]]
    with pytest.raises(BadRequest, match="base64"):
        client.predict(endpoint=endpoint, instances=[{"content": "!"}])

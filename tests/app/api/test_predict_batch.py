"""POST /predict/batch: order, errors of single images, and limits."""

from typing import Any

import httpx
import pytest

from tests.app.conftest import OpenClient
from tests.support.models import png
from tests.support.predict import assert_problem, base64_of


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_batch_keeps_order_and_isolates_errors(client: httpx.AsyncClient, form: str) -> None:
    images = [png(0), b"", png(1), b"hello", png(2)]
    body: dict[str, Any] = (
        {"files": [("images", image) for image in images]}
        if form == "multipart"
        else {"json": {"images": [base64_of(image) for image in images]}}
    )
    response = await client.post("/predict/batch", params={"top_k": 2}, **body)
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == "tiny-dinov2"
    codes = [result["error"]["code"] if "error" in result else None for result in answer["results"]]
    assert codes == [None, "malformed_request", None, "unsupported_image_format", None]
    for position, seed in ((0, 0), (2, 1), (4, 2)):
        alone = (await client.post("/predict", params={"top_k": 2}, content=png(seed))).json()
        del alone["model"], alone["activation"]
        assert answer["results"][position]["logits"] == pytest.approx(alone["logits"], abs=1e-5)
        assert set(answer["results"][position]) == set(alone)


async def test_bad_json_entry_fails_alone(open_client: OpenClient) -> None:
    good = base64_of(png(0))
    bad: dict[str, tuple[Any, str, str]] = {
        "number": (1, "malformed_request", "must be a base64 string"),
        "null": (None, "malformed_request", "must be a base64 string"),
        "list": ([good], "malformed_request", "must be a base64 string"),
        "object": ({"image": good}, "malformed_request", "must be a base64 string"),
        "url": ("http://169.254.169.254/", "malformed_request", "A URL is never fetched"),
        "no-base64": ("***", "malformed_request", "not valid base64"),
        "cut-off": (good[:-1], "malformed_request", "not valid base64"),
        "no-comma": ("data:image/png;base64", "malformed_request", "not valid base64"),
        "empty": ("", "malformed_request", "is empty"),
        "too-large": (base64_of(bytes(10_001)), "image_too_large", "more than the 10000 bytes"),
    }
    images = [good, *(image for image, _, _ in bad.values()), good]
    async with open_client(max_image_bytes=10_000) as client:
        response = await client.post("/predict/batch", json={"images": images})
        alone = (await client.post("/predict", content=png(0))).json()
    assert response.status_code == 200
    first, *errors, last = response.json()["results"]
    assert first["logits"] == pytest.approx(alone["logits"], abs=1e-5)
    assert last["logits"] == pytest.approx(alone["logits"], abs=1e-5)
    for error, (_, code, says) in zip(errors, bad.values(), strict=True):
        assert set(error) == {"error"}
        assert set(error["error"]) == {"type", "title", "status", "detail", "code"}
        assert (error["error"]["code"], error["error"]["status"]) == (code, 413 if code == "image_too_large" else 400)
        assert says in error["error"]["detail"]


async def test_oversized_part_fails_alone(open_client: OpenClient) -> None:
    async with open_client(max_image_bytes=10_000) as client:
        response = await client.post("/predict/batch", files=[("images", image) for image in (png(0), bytes(10_001), png(1))])
    codes = [result.get("error", {}).get("code") for result in response.json()["results"]]
    assert codes == [None, "image_too_large", None]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({}, 400, "malformed_request", id="empty"),
        pytest.param({"content": png(0)}, 400, "malformed_request", id="raw"),
        pytest.param({"json": {"images": []}}, 400, "malformed_request", id="no-images"),
        pytest.param({"json": {"images": "abc"}}, 400, "malformed_request", id="not-a-list"),
        pytest.param({"files": [("images", png(0))] * 4}, 422, "invalid_parameter", id="too-many-parts"),
        pytest.param({"json": {"images": [base64_of(png(0))] * 4}}, 422, "invalid_parameter", id="too-many-strings"),
        pytest.param({"files": [("images", bytes(30_000))]}, 413, "image_too_large", id="too-many-bytes"),
    ],
)
async def test_invalid_batch_is_refused(open_client: OpenClient, body: dict[str, Any], status: int, code: str) -> None:
    async with open_client(max_images_per_request=3, max_request_bytes=20_000) as client:
        assert_problem(await client.post("/predict/batch", **body), status, code)


async def test_batch_over_the_queue_is_partly_refused(open_client: OpenClient) -> None:
    async with open_client(max_inflight_images=2) as client:
        response = await client.post("/predict/batch", files=[("images", png(seed)) for seed in range(4)])
    codes = [result.get("error", {}).get("code") for result in response.json()["results"]]
    assert codes == [None, None, "queue_full", "queue_full"]
    assert int(response.headers["retry-after"]) >= 1

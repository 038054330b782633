"""TorchServe's inference API over a real socket."""

from typing import Any

import httpx
import pytest

from tests.app.api.protocols.conftest import CAT
from tests.support.predict import base64_of, multipart

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMS: dict[str, dict[str, Any]] = {
    "raw": {"content": CAT},
    "perf-analyzer": multipart(('Content-Disposition: form-data; name="data"', CAT)),
    "part-body": multipart(('Content-Disposition: form-data; name="body"; filename="x"', CAT)),
    "json": {"json": {"data": base64_of(CAT)}},
    "json-string": {"json": base64_of(CAT)},
}


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("name", FORMS)
async def test_image_is_answered_by_label(service: httpx.AsyncClient, name: str, method: str) -> None:
    for path in ("/predictions/vit", "/predictions/vit/1"):
        response = await service.request(method, path, **FORMS[name])
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
        assert list(response.json()) == ["cat", "dog", "espresso"]
        assert list(response.json().values()) == pytest.approx([0.66524096, 0.24472847, 0.09003057], abs=1e-6)
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "content", "status", "kind"),
    [
        ("/predictions/nope", CAT, 404, "ModelNotFoundException"),
        ("/predictions/vit/2.0", CAT, 404, "ModelNotFoundException"),
        ("/predictions/vit", CAT[:20_000], 400, "BadRequestException"),
        ("/predictions/vit", b"hello", 400, "BadRequestException"),
        ("/predictions/vit", b"", 400, "BadRequestException"),
        ("/predictions", CAT, 404, "ModelNotFoundException"),
    ],
)
async def test_errors(service: httpx.AsyncClient, path: str, content: bytes, status: int, kind: str) -> None:
    response = await service.post(path, content=content)
    assert (response.status_code, response.json()["code"], response.json()["type"]) == (status, status, kind)
    assert set(response.json()) == {"code", "type", "message"}


async def test_ping(service: httpx.AsyncClient) -> None:
    assert (await service.get("/ping")).json() == {"status": "Healthy"}

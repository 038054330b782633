"""Errors reveal nothing of the inside, whatever the cause."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from app.errors import EngineDead
from app.pixels import Pixels
from app.serving.runner import ModelRunner
from tests.app.conftest import OpenClient
from tests.support.models import encode, png, random_image
from tests.support.predict import IMAGE, MULTIPART, assert_problem, base64_of, multipart

LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|/usr/|site-packages|<_io|File \"|Error\(|torch|PIL|pydantic", re.IGNORECASE)

JPEG = encode(random_image(0), "JPEG")
BAD_IMAGES = [
    b"",
    b"hello",
    png(0)[:60],
    png(0)[:-40],
    png(0)[:30] + bytes(200),
    JPEG[: len(JPEG) // 2],
    JPEG[:20] + b"\xff" * 300,
    b"GIF89a" + bytes(20),
    b"BM" + bytes(60),
    b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(16),
    b"\x89PNG\r\n\x1a\n" + bytes(100),
    b"%!PS-Adobe-3.0 EPSF-3.0",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]

BAD_JSON: list[Any] = [[], {}, None, 1, {"image": {}}, {"image": "/etc/passwd"}]

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *[("POST", "/predict", {"content": bad}) for bad in BAD_IMAGES],
    *[("POST", "/predict", {"files": {"image": bad}}) for bad in BAD_IMAGES],
    *[("POST", "/predict", {"json": {"image": base64_of(bad)}}) for bad in BAD_IMAGES],
    ("POST", "/predict/batch", {"files": [("images", bad) for bad in BAD_IMAGES]}),
    ("POST", "/predict/batch", {"json": {"images": [base64_of(bad) for bad in BAD_IMAGES]}}),
    *[("POST", "/predict", {"json": body}) for body in BAD_JSON],
    *[("POST", "/predict", {"params": {"top_k": value}}) for value in ("0", "x", "1e9", "9" * 5000, "\0", "")],
    *[("POST", "/predict", {"headers": {"X-Request-Timeout-Ms": value}}) for value in ("x", "-1", "nan")],
    ("POST", "/predict", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    ("POST", "/predict", {"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}),
    ("POST", "/predict", {"content": b"--", "headers": {"Content-Type": MULTIPART}}),
    ("POST", "/predict", multipart((IMAGE + "\r\na: b" * 9, b""))),
    ("POST", "/predict", {"content": b"x", "headers": {"Content-Encoding": "gzip"}}),
    ("GET", "/predict", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/%00", {}),
]


async def fails(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
    raise RuntimeError(f"/usr/lib {object()} 0xdeadbeef")


async def dies(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
    raise EngineDead(f"/usr/lib {object()} 0xdeadbeef")


def assert_tells_nothing(response: httpx.Response) -> None:
    assert not LEAK.search(response.text), response.text
    assert not LEAK.search(str(response.headers)), response.headers


async def test_errors_reveal_no_internals(client: httpx.AsyncClient) -> None:
    for method, path, options in REQUESTS:
        response = await client.request(method, path, **options)
        assert response.status_code < 500
        assert response.status_code >= 400 or path == "/predict/batch"
        assert_tells_nothing(response)


@pytest.mark.parametrize("run", [fails, dies], ids=["failing-run", "dead-device"])
async def test_broken_model_reveals_nothing(open_client: OpenClient, run: Callable[..., Any]) -> None:
    async with open_client(run) as client:
        for _ in range(2):
            for path, body in (("/predict", {"content": png(0)}), ("/predict/batch", {"files": [("images", png(0))]})):
                assert_tells_nothing(await client.post(path, **body))
        assert_tells_nothing(await client.get("/health/ready"))


@pytest.mark.parametrize(
    "broken", ["app.api.predict.read_image", "app.serving.classifier.Classifier.classify", "app.api.predict.write_result"]
)
async def test_unexpected_errors_reveal_nothing(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def breaks(*_: object) -> None:
        raise OSError(2, "No such file", "/usr/lib/python3/site-packages/x 0xdeadbeef")

    monkeypatch.setattr(broken, breaks)
    async with open_client() as client:
        response = await client.post("/predict", content=png(0))
    assert_problem(response, 500, "internal_error")
    assert response.headers["x-request-id"]
    assert_tells_nothing(response)

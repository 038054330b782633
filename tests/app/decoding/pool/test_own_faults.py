"""Exceptions in the service's own code while it decodes: 500, logged by class and place, never the image's fault."""

from typing import Any

import pytest

from app.decoding import headers, pillow
from app.decoding import image as images
from app.decoding.geometry import Geometry
from app.decoding.pool.threads import ThreadDecoder
from app.errors import InternalError, UndecodableImage
from benchmarks.watch import metrics_of
from model.preprocessing import Preprocessing
from tests.app.conftest import OpenClient, open_client
from tests.app.decoding.decoders import HALF, decoder
from tests.support.models import encode, png, random_image

__all__ = ["open_client"]

PREPROCESSING = Preprocessing(32, (28, 28), "bicubic", HALF, HALF)


def broken(*_: object, **__: object) -> Any:
    raise KeyError("pixel 17 shows a secret")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (images, "_resize_and_crop"),
        (pillow, "_upright"),
        (pillow, "_to_rgb"),
        (images, "check_scans"),
        (images, "sniff_format"),
        (pillow, "pillow_name"),
        (Geometry, "of"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_own_fault_is_not_the_images(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(KeyError):
        decoder(PREPROCESSING).decode(encode(random_image(0), "JPEG"))


@pytest.mark.parametrize("name", ["jpeg.resize", "jpeg._upright"])
def test_own_fault_in_fast_jpeg_is_not_the_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"app.decoding.{name}", broken)
    with pytest.raises(KeyError):
        decoder(PREPROCESSING, exact=False).decode(encode(random_image(0), "JPEG"))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_truncated_image_is_the_images_fault(image_format: str) -> None:
    image = encode(random_image(0), image_format)
    with pytest.raises(UndecodableImage):
        decoder(PREPROCESSING, exact=False).decode(image[: len(image) // 2])


async def test_fault_in_a_thread_is_logged_by_place(caplog: pytest.LogCaptureFixture) -> None:
    threads = ThreadDecoder(broken, threads=1)
    with pytest.raises(InternalError):
        await threads.decode(b"")
    await threads.close()
    assert "KeyError at test_own_faults.py:" in caplog.text
    assert "secret" not in caplog.text


async def test_fault_in_header_is_500_for_its_image(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(headers._SIZE, "gif", broken)
    parts = [("images", png(0)), ("images", encode(random_image(1), "GIF")), ("images", png(2))]
    async with open_client() as client:
        results = (await client.post("/predict/batch", files=parts)).json()["results"]
    assert [result.get("error", {}).get("code") for result in results] == [None, "internal_error", None]


async def test_fault_is_500_for_its_image_alone(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    resize_and_crop = images._resize_and_crop

    def fails_on_wide(image: Any, preprocessing: Preprocessing) -> Any:
        return broken() if image.width > image.height * 3 else resize_and_crop(image, preprocessing)

    monkeypatch.setattr(images, "_resize_and_crop", fails_on_wide)
    parts = [("images", png(0)), ("images", encode(random_image(1, 400, 40))), ("images", png(2))]
    async with open_client() as client:
        response = await client.post("/predict/batch", files=parts)
        metrics = metrics_of((await client.get("/metrics")).content)
    results = response.json()["results"]
    assert response.status_code == 200
    assert [result.get("error", {}).get("code") for result in results] == [None, "internal_error", None]
    assert results[1]["error"]["status"] == 500
    assert "secret" not in response.text
    assert metrics['vit_images_total{outcome="internal_error"}'] == 1

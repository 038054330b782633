"""POST /predict: malformed, oversized and unusual bodies, and invalid parameters."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.app.conftest import OpenClient
from tests.support.models import encode, png, random_image
from tests.support.predict import IMAGE, MULTIPART, NO_NUMBERS, NOTE, assert_problem, base64_of, chunks, multipart


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        pytest.param({}, "There is no image", id="empty"),
        pytest.param({"files": {"photo": png(0)}}, "There is no image", id="another-part"),
        pytest.param({"files": {"image": b""}}, "The image is empty", id="empty-part"),
        pytest.param({"files": [("image", png(0)), ("file", png(1))]}, "more than one image", id="two-images"),
        pytest.param({"files": [(f"x{i}", b"") for i in range(9)]}, "more than 8 parts", id="many-parts"),
        pytest.param({"files": [(f"x{i}", b"") for i in range(1001)]}, "more than 8 parts", id="a-flood-of-parts"),
        pytest.param(multipart(("Content-Disposition: form-data; name=x", bytes(2_000_000))), "no image", id="huge-field"),
        pytest.param({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "no boundary", id="no-boundary"),
        pytest.param(
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary="}}, "no boundary", id="empty-boundary"
        ),
        pytest.param(multipart((IMAGE, png(0)), boundary="b" * 71), "longer than 70 bytes", id="long-boundary"),
        pytest.param(multipart((IMAGE, png(0)), boundary="b" * 10_000), "longer than 1024 bytes", id="huge-boundary"),
        pytest.param(multipart((IMAGE + "\r\na: b" * 200, png(0))), "is broken", id="part-header-flood"),
        pytest.param(multipart((f"{IMAGE}\r\na: {'b' * 65536}", png(0))), "is broken", id="part-header-bomb"),
        pytest.param(multipart((f'{IMAGE}; filename="{"a" * 100_000}"', png(0))), "is broken", id="filename-bomb"),
        pytest.param(multipart((IMAGE, png(0)), before=b"hello\r\n" * 100_000), "is broken", id="preamble"),
        pytest.param({"files": [("image", png(0))] * 1001}, "more than one image", id="many-images"),
        pytest.param({"content": b"garbage", "headers": {"Content-Type": MULTIPART}}, "is broken", id="garbage"),
        pytest.param(
            {
                "content": b"--frontier\r\nContent-Type: image/png\r\n\r\nx\r\n--frontier--\r\n",
                "headers": {"Content-Type": MULTIPART},
            },
            "has no name",
            id="nameless-part",
        ),
        pytest.param(
            {
                "content": b'--frontier\r\nContent-Disposition: form-data; name="image"\r\n\r\nhalf a pic',
                "headers": {"Content-Type": MULTIPART},
            },
            "ends before its closing boundary",
            id="truncated-multipart",
        ),
        pytest.param(
            {"content": b"--frontier\r\nContent-Dispo", "headers": {"Content-Type": MULTIPART}},
            "ends before its closing boundary",
            id="truncated-in-a-header",
        ),
        pytest.param({"content": b"{", "headers": {"Content-Type": "application/json"}}, "not valid JSON", id="broken-json"),
        pytest.param(
            {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, "far more than images", id="deep-json"
        ),
        pytest.param({"json": [1]}, "must be an object", id="json-list"),
        pytest.param({"json": {}}, "There is no image", id="json-without-image"),
        pytest.param({"json": {"url": "http://169.254.169.254/"}}, "There is no image", id="json-with-url"),
        pytest.param({"json": {"image": [[]] * 100}}, "far more than images", id="json-bomb"),
        pytest.param({"json": {"image": 5}}, "must be a base64 string", id="json-number"),
        pytest.param({"json": {"image": "***"}}, "not valid base64", id="not-base64"),
        pytest.param({"json": {"image": ""}}, "The image is empty", id="json-empty"),
        pytest.param({"json": {"image": "http://169.254.169.254/"}}, "A URL is never fetched", id="url"),
    ],
)
async def test_malformed_request_is_400(client: httpx.AsyncClient, request_: dict[str, Any], says: str) -> None:
    problem = assert_problem(await client.post("/predict", **request_), 400, "malformed_request")
    assert says in problem["detail"]


@pytest.mark.parametrize("framing", ["raw", "chunked", "multipart", "json"])
async def test_image_over_max_bytes_is_413(open_client: OpenClient, framing: str) -> None:
    def request(size: int) -> dict[str, Any]:
        image_bytes = png(0) + bytes(size - len(png(0)))  # decoders ignore bytes after the image
        forms: dict[str, dict[str, Any]] = {
            "raw": {"content": image_bytes},
            "chunked": {"content": chunks(image_bytes[:5000], image_bytes[5000:])},
            "multipart": {"files": {"image": image_bytes}},
            "json": {"json": {"image": base64_of(image_bytes)}},
        }
        return forms[framing]

    async with open_client(max_image_bytes=10_000) as client:
        assert (await client.post("/predict", **request(10_000))).status_code == 200
        refused = await client.post("/predict", **request(10_001))
        assert_problem(refused, 413, "image_too_large")
        assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("declared", [True, False])
async def test_oversized_body_is_not_read_to_its_end(open_client: OpenClient, declared: bool) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 1_000_000:
            read += 1000
            yield bytes(1000)

    headers = {"Content-Length": "1000000"} if declared else {}
    async with open_client(max_image_bytes=10_000) as client:
        assert_problem(await client.post("/predict", content=endless(), headers=headers), 413, "image_too_large")
    assert read == (0 if declared else 11_000)


async def test_image_over_max_pixels_is_413(open_client: OpenClient) -> None:
    async with open_client(max_image_pixels=1000) as client:
        problem = assert_problem(await client.post("/predict", content=png(0)), 413, "image_too_large")
    assert "40 x 36 pixels" in problem["detail"]


FLOODS: dict[str, tuple[str, list[bytes], int, str]] = {
    "second-image": ("/predict", [f"--b\r\n{IMAGE}\r\n\r\n\r\n".encode()] * 2, 400, "more than one image"),
    "fourth-image": ("/predict/batch", [f"--b\r\n{IMAGE}\r\n\r\n\r\n".encode()] * 4, 422, "more than 3 images"),
    "ninth-other": ("/predict", [b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n"] * 9, 400, "more than 8 parts"),
    "nameless": ("/predict/batch", [b"--b\r\na: b\r\n\r\n"], 400, "has no name"),
    "two-names": ("/predict", [f"--b\r\n{IMAGE}\r\n{IMAGE}\r\n\r\n".encode()], 400, "more than one Content-Disposition"),
    "many-parameters": ("/predict", [f"--b\r\n{IMAGE}{';' * 70}\r\n\r\n".encode()], 400, "more than 64 parameters"),
    "like-the-boundary": (
        "/predict",
        [f"--b\r\n{IMAGE}\r\n\r\n".encode(), *[b"\r\n--bx"] * 18],
        400,
        "begin like its boundary",
    ),
    "padding": (
        "/predict",
        [f"--b\r\n{IMAGE}\r\n\r\n\r\n--b".encode(), b" " * 1000, b"\t" * 25],
        400,
        "blanks behind a boundary",
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in FLOODS.items()])
async def test_multipart_flood_stops_reading(open_client: OpenClient, case: tuple[str, list[bytes], int, str]) -> None:
    path, sent, status, says = case
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for piece in [*sent, *[b"x" * 1000] * 100]:
            read += 1
            yield piece

    async with open_client(max_images_per_request=3) as client:
        response = await client.post(path, content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    problem = assert_problem(response, status, "invalid_parameter" if status == 422 else "malformed_request")
    assert says in problem["detail"]
    assert read == len(sent)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        pytest.param([("Content-Type", "image/png" + ";" * 1024)], "longer than 1024 bytes", id="long"),
        pytest.param([("Content-Type", "image/png"), ("Content-Type", "application/json")], "more than one", id="two"),
    ],
)
async def test_odd_content_type_is_400(client: httpx.AsyncClient, headers: list[tuple[str, str]], says: str) -> None:
    for path in ("/predict", "/predict/batch"):
        response = await client.post(path, content=png(0), headers=headers)
        assert says in assert_problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(multipart((IMAGE, png(0)), boundary="b" * 70), id="longest-boundary"),
        pytest.param(multipart((IMAGE, png(0)), before=b"\r\n" * 500_000), id="blank-preamble"),
        pytest.param(multipart((IMAGE, png(0)), after=b"x" * 1_000_000), id="epilogue"),
        pytest.param(multipart((IMAGE, png(0)), after=b"\r\n--frontier\r\n" * 1000), id="boundaries-in-the-epilogue"),
        pytest.param(multipart((IMAGE, png(0) + b"\r\n--frontierx" * 8)), id="a-few-lines-like-the-boundary"),
        pytest.param(multipart((NOTE, b"some\r\n--frontier \t\r\n" + IMAGE.encode() + b"\r\n\r\n" + png(0))), id="padding"),
        pytest.param(multipart((f'{IMAGE}; filename="../../etc/passwd"', png(0))), id="filename-path"),
        pytest.param(multipart((f"{IMAGE}; filename=\"a.php%00.jpg\"; filename*=UTF-8''x", png(0))), id="filename-star"),
        pytest.param(multipart((f'{IMAGE}; filename="{"A" * 255}"', png(0))), id="filename-long"),
        pytest.param(multipart((f'{IMAGE}; filename="\u202egpj.exe"', png(0))), id="filename-right-to-left"),
        pytest.param(multipart((f'{IMAGE}; filename="a%0D%0Ab.png"', png(0))), id="filename-line-break"),
        pytest.param(multipart(("Content-Disposition: form-data; name=image", png(0))), id="unquoted-name"),
    ],
)
async def test_unusual_but_valid_multipart_is_200(client: httpx.AsyncClient, form: dict[str, Any]) -> None:
    assert (await client.post("/predict", **form)).status_code == 200


@pytest.mark.parametrize("content", [b"hello", b"%PDF-1.7", b"\x80\x04pickle", b"http://169.254.169.254/latest"])
async def test_non_image_is_415(client: httpx.AsyncClient, content: bytes) -> None:
    assert_problem(await client.post("/predict", content=content), 415, "unsupported_image_format")
    assert_problem(await client.post("/predict", files={"image": content}), 415, "unsupported_image_format")
    assert_problem(await client.post("/predict", **multipart((IMAGE, content))), 415, "unsupported_image_format")
    pickled = {"Content-Type": "application/vnd.bentoml+pickle"}
    assert_problem(await client.post("/predict", content=content, headers=pickled), 415, "unsupported_image_format")


async def test_disabled_format_is_415(open_client: OpenClient) -> None:
    async with open_client(image_formats="jpeg") as client:
        assert_problem(await client.post("/predict", content=png(0)), 415, "unsupported_image_format")
        jpeg = encode(random_image(0), "JPEG")
        assert (await client.post("/predict", content=jpeg)).status_code == 200


@pytest.mark.parametrize("encodings", [["gzip"], ["identity", "gzip"], ["identity, br"], [""]])
async def test_compressed_body_is_415(client: httpx.AsyncClient, encodings: list[str]) -> None:
    headers = [("Content-Encoding", encoding) for encoding in encodings]
    response = await client.post("/predict", content=png(0), headers=headers)
    assert_problem(response, 415, "unsupported_image_format")


@pytest.mark.parametrize("sent", [*NO_NUMBERS, "\uff15", "\u0665", ""])
async def test_invalid_top_k_is_422(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.post("/predict", params={"top_k": sent}, content=png(0))
    assert "top_k" in assert_problem(response, 422, "invalid_parameter")["detail"]


@pytest.mark.parametrize("sent", NO_NUMBERS)
async def test_invalid_content_length_is_400(client: httpx.AsyncClient, sent: str) -> None:
    for path in ("/predict", "/predict/batch"):
        headers = {b"Content-Length": sent.encode("latin-1"), b"Content-Type": b"application/json"}
        response = await client.post(path, content=b"{}", headers=headers)
        assert "Content-Length" in assert_problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("params", [{"top_k": 0}, {"top_k": -3}, {"top_k": "many"}, {"vectors": "perhaps"}])
async def test_parameter_out_of_range_is_422(client: httpx.AsyncClient, params: dict[str, Any]) -> None:
    problem = assert_problem(await client.post("/predict", params=params, content=png(0)), 422, "invalid_parameter")
    assert next(iter(params)) in problem["detail"]

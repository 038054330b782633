"""POST /predict and /predict/batch: all request forms, the numbers of the answer, all rows of the error table."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from app.api.problems import problem_headers
from app.errors import EngineDead, QueueFull
from app.pixels import Pixels
from app.serving.runner import ModelRunner
from benchmarks.watch import metrics_of
from tests.app.conftest import OpenClient
from tests.support.models import encode, picture, random_picture


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    return problem


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield a body in chunks, which has no Content-Length."""
    for part in parts:
        yield part


def base64_of(image_bytes: bytes) -> str:
    return base64.b64encode(image_bytes).decode()


FORMS: dict[str, dict[str, Any]] = {
    "part-image": {"files": {"image": picture(0)}},
    "part-file": {"files": {"file": ("name.png", picture(0), "text/plain")}},
    "part-data": {"files": {"data": picture(0)}},
    "part-beside-others": {"files": {"image": picture(0), "notes": b"some"}, "data": {"user": "me"}},
    "raw-image": {"content": picture(0), "headers": {"Content-Type": "image/png"}},
    "raw-octets": {"content": picture(0), "headers": {"Content-Type": "application/octet-stream"}},
    "raw-wrong-type": {"content": picture(0), "headers": {"Content-Type": "image/jpeg"}},
    "raw-no-type": {"content": picture(0)},
    "raw-curl-default": {"content": picture(0), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "raw-for-a-browser": {"content": picture(0), "headers": {"Accept": "text/html"}},
    "raw-chunked": {"content": chunks(picture(0)[:100], picture(0)[100:])},
    "json": {"json": {"image": base64_of(picture(0))}},
    "json-data-uri": {"json": {"image": f"data:image/png;base64,{base64_of(picture(0))}"}},
    "json-with-line-breaks": {"json": {"image": base64.encodebytes(picture(0)).decode()}},
}


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items()])
async def test_all_request_forms_give_the_same_answer(client: httpx.AsyncClient, form: dict[str, Any]) -> None:
    expected = (await client.post("/predict", content=picture(0))).json()
    response = await client.post("/predict", **form)
    assert response.status_code == 200
    answer = response.json()
    assert answer["predictions"][0]["label"] == expected["predictions"][0]["label"]
    assert answer["logits"] == pytest.approx(expected["logits"], abs=1e-5)


async def test_answer_is_ranked_and_consistent(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/predict", content=picture(1))).json()
    logits, probabilities = np.array(answer["logits"]), np.array(answer["probabilities"])
    assert list(answer) == ["model", "activation", "predictions", "logits", "probabilities"]
    assert answer["model"] == "tiny-dinov2"
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert [prediction["class_index"] for prediction in answer["predictions"]] == np.argsort(-logits)[:5].tolist()
    for prediction in answer["predictions"]:
        index = prediction["class_index"]
        assert prediction == {
            "label": f"class {index}",
            "class_index": index,
            "probability": answer["probabilities"][index],
            "logit": answer["logits"][index],
        }


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (5, 5), (10, 10), (1000, 10)])
async def test_top_k_limits_the_predictions(client: httpx.AsyncClient, top_k: int, expected: int) -> None:
    answer = (await client.post("/predict", params={"top_k": top_k}, content=picture(1))).json()
    assert len(answer["predictions"]) == expected


async def test_vectors_can_be_left_out(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/predict", params={"vectors": "false"}, content=picture(1))).json()
    assert set(answer) == {"model", "activation", "predictions"}


async def test_concurrent_answers_match_single_ones(open_client: OpenClient) -> None:
    async with open_client(max_batch_size=32) as client:
        alone = [(await client.post("/predict", content=picture(seed))).json()["logits"] for seed in range(200)]
        together = await asyncio.gather(*(client.post("/predict", content=picture(seed)) for seed in range(200)))
        metrics = metrics_of((await client.get("/metrics")).content)
    np.testing.assert_allclose([response.json()["logits"] for response in together], alone, rtol=0, atol=1e-4)
    distances = np.abs(np.array(alone)[:, None] - np.array(alone)[None]).max(axis=-1) + np.eye(200)
    assert distances.min() > 1e-2  # a swapped answer would fail the comparison above
    assert metrics["vit_batch_size_images_count"] < 300  # batches did form


async def test_corrupt_image_fails_alone_of_sixteen(client: httpx.AsyncClient) -> None:
    good = [(await client.post("/predict", content=picture(seed))).json()["logits"] for seed in range(16)]
    bodies = [picture(seed) for seed in range(16)]
    bodies[7] = bodies[7][: len(bodies[7]) // 2]
    responses = await asyncio.gather(*(client.post("/predict", content=body) for body in bodies))
    assert_problem(responses[7], 422, "undecodable_image")
    for seed in set(range(16)) - {7}:
        assert responses[seed].status_code == 200
        np.testing.assert_allclose(responses[seed].json()["logits"], good[seed], rtol=0, atol=1e-4)


MULTIPART = "multipart/form-data; boundary=frontier"


def multipart(*parts: tuple[str, bytes], before: bytes = b"", after: bytes = b"", boundary: str = "frontier") -> dict[str, Any]:
    """Return a request whose parts have exactly these headers."""
    framed = [f"--{boundary}\r\n{header}\r\n\r\n".encode() + body + b"\r\n" for header, body in parts]
    body = b"".join([before, *framed, f"--{boundary}--\r\n".encode(), after])
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


IMAGE = 'Content-Disposition: form-data; name="image"'
NOTE = "Content-Disposition: form-data; name=note"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        pytest.param({}, "There is no image", id="empty"),
        pytest.param({"files": {"photo": picture(0)}}, "There is no image", id="another-part"),
        pytest.param({"files": {"image": b""}}, "The image is empty", id="empty-part"),
        pytest.param({"files": [("image", picture(0)), ("file", picture(1))]}, "more than one image", id="two-images"),
        pytest.param({"files": [(f"x{i}", b"") for i in range(9)]}, "more than 8 parts", id="many-parts"),
        pytest.param({"files": [(f"x{i}", b"") for i in range(1001)]}, "more than 8 parts", id="a-flood-of-parts"),
        pytest.param(multipart(("Content-Disposition: form-data; name=x", bytes(2_000_000))), "no image", id="huge-field"),
        pytest.param({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "no boundary", id="no-boundary"),
        pytest.param(
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary="}}, "no boundary", id="empty-boundary"
        ),
        pytest.param(multipart((IMAGE, picture(0)), boundary="b" * 71), "longer than 70 bytes", id="long-boundary"),
        pytest.param(multipart((IMAGE, picture(0)), boundary="b" * 10_000), "longer than 1024 bytes", id="huge-boundary"),
        pytest.param(multipart((IMAGE + "\r\na: b" * 200, picture(0))), "is broken", id="part-header-flood"),
        pytest.param(multipart((f"{IMAGE}\r\na: {'b' * 65536}", picture(0))), "is broken", id="part-header-bomb"),
        pytest.param(multipart((f'{IMAGE}; filename="{"a" * 100_000}"', picture(0))), "is broken", id="filename-bomb"),
        pytest.param(multipart((IMAGE, picture(0)), before=b"hello\r\n" * 100_000), "is broken", id="preamble"),
        pytest.param({"files": [("image", picture(0))] * 1001}, "more than one image", id="many-images"),
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
        image_bytes = picture(0) + bytes(size - len(picture(0)))  # decoders ignore bytes after the image
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
        problem = assert_problem(await client.post("/predict", content=picture(0)), 413, "image_too_large")
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
        response = await client.post(path, content=picture(0), headers=headers)
        assert says in assert_problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(multipart((IMAGE, picture(0)), boundary="b" * 70), id="longest-boundary"),
        pytest.param(multipart((IMAGE, picture(0)), before=b"\r\n" * 500_000), id="blank-preamble"),
        pytest.param(multipart((IMAGE, picture(0)), after=b"x" * 1_000_000), id="epilogue"),
        pytest.param(multipart((IMAGE, picture(0)), after=b"\r\n--frontier\r\n" * 1000), id="boundaries-in-the-epilogue"),
        pytest.param(multipart((IMAGE, picture(0) + b"\r\n--frontierx" * 8)), id="a-few-lines-like-the-boundary"),
        pytest.param(multipart((NOTE, b"some\r\n--frontier \t\r\n" + IMAGE.encode() + b"\r\n\r\n" + picture(0))), id="padding"),
        pytest.param(multipart((f'{IMAGE}; filename="../../etc/passwd"', picture(0))), id="filename-path"),
        pytest.param(multipart((f"{IMAGE}; filename=\"a.php%00.jpg\"; filename*=UTF-8''x", picture(0))), id="filename-star"),
        pytest.param(multipart((f'{IMAGE}; filename="{"A" * 255}"', picture(0))), id="filename-long"),
        pytest.param(multipart((f'{IMAGE}; filename="\u202egpj.exe"', picture(0))), id="filename-right-to-left"),
        pytest.param(multipart((f'{IMAGE}; filename="a%0D%0Ab.png"', picture(0))), id="filename-line-break"),
        pytest.param(multipart(("Content-Disposition: form-data; name=image", picture(0))), id="unquoted-name"),
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
        assert_problem(await client.post("/predict", content=picture(0)), 415, "unsupported_image_format")
        jpeg = encode(random_picture(0), "JPEG")
        assert (await client.post("/predict", content=jpeg)).status_code == 200


@pytest.mark.parametrize("encodings", [["gzip"], ["identity", "gzip"], ["identity, br"], [""]])
async def test_compressed_body_is_415(client: httpx.AsyncClient, encodings: list[str]) -> None:
    headers = [("Content-Encoding", encoding) for encoding in encodings]
    response = await client.post("/predict", content=picture(0), headers=headers)
    assert_problem(response, 415, "unsupported_image_format")


NO_NUMBERS = [
    "+5",
    "-5",
    " 5",
    "5 ",
    "1_000",
    "5.0",
    "1e3",
    "1e400",
    "0x5",
    "inf",
    "nan",
    "\xb2",
    "9" * 19,
    "9" * 4301,
    "0" * 4301,
]


@pytest.mark.parametrize("sent", [*NO_NUMBERS, "\uff15", "\u0665", ""])
async def test_invalid_top_k_is_422(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.post("/predict", params={"top_k": sent}, content=picture(0))
    assert "top_k" in assert_problem(response, 422, "invalid_parameter")["detail"]


@pytest.mark.parametrize("sent", NO_NUMBERS)
async def test_invalid_content_length_is_400(client: httpx.AsyncClient, sent: str) -> None:
    for path in ("/predict", "/predict/batch"):
        headers = {b"Content-Length": sent.encode("latin-1"), b"Content-Type": b"application/json"}
        response = await client.post(path, content=b"{}", headers=headers)
        assert "Content-Length" in assert_problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("params", [{"top_k": 0}, {"top_k": -3}, {"top_k": "many"}, {"vectors": "perhaps"}])
async def test_parameter_out_of_range_is_422(client: httpx.AsyncClient, params: dict[str, Any]) -> None:
    problem = assert_problem(await client.post("/predict", params=params, content=picture(0)), 422, "invalid_parameter")
    assert next(iter(params)) in problem["detail"]


class Held:
    """Inference that waits until its gate is opened."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.ran = 0

    async def __call__(self, runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        self.begun.set()
        await self.gate.wait()
        self.ran += len(images)
        return await runner.run(images)


async def test_full_queue_is_429_with_retry_after(open_client: OpenClient) -> None:
    held, read = Held(), []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield picture(0)

    async with open_client(held, max_inflight_images=1) as client:
        first = asyncio.create_task(client.post("/predict", content=picture(0)))
        await held.begun.wait()
        refused = await client.post("/predict", content=body())
        batch = await client.post("/predict/batch", content=body())
        ready = await client.get("/health/ready")
        held.gate.set()
        assert (await first).status_code == 200
    assert_problem(refused, 429, "queue_full")
    assert_problem(batch, 429, "queue_full")
    assert not read
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.status_code == 200


async def test_too_many_bytes_in_flight_is_429(open_client: OpenClient) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield picture(0)[:-1]
        arrived.set()
        await go_on.wait()
        yield picture(0)[-1:]

    size = len(picture(0))
    async with open_client(max_image_bytes=size, max_request_bytes=size, max_inflight_bytes=2 * size - 2) as client:
        first = asyncio.create_task(client.post("/predict", content=slow()))
        await arrived.wait()
        refused = await client.post("/predict", content=picture(0))
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", content=picture(0))).status_code == 200
    assert_problem(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1


async def test_retry_after_is_jittered() -> None:
    times = {problem_headers(QueueFull("full", retry_after_s=100))["Retry-After"] for _ in range(50)}
    assert len(times) > 1
    assert {80 <= int(time) <= 120 for time in times} == {True}


async def test_late_image_is_504_and_skips_inference(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held) as client:
        first = asyncio.create_task(client.post("/predict", content=picture(0)))
        await held.begun.wait()
        late = await client.post("/predict", content=picture(1), headers={"X-Request-Timeout-Ms": "20"})
        held.gate.set()
        await first
    assert_problem(late, 504, "deadline_exceeded")
    assert held.ran == 1


async def test_client_cannot_extend_the_deadline(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held, request_timeout_s=0.02) as client:
        late = await client.post("/predict", content=picture(1), headers={"X-Request-Timeout-Ms": "60000"})
    assert_problem(late, 504, "deadline_exceeded")


async def test_stalled_body_is_504(open_client: OpenClient) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield picture(0)[:10]
        await asyncio.Event().wait()

    async with open_client(request_timeout_s=0.02) as client:
        assert_problem(await client.post("/predict", content=stalled()), 504, "deadline_exceeded")


@pytest.mark.parametrize("value", ["0", "soon", "", *NO_NUMBERS])
async def test_invalid_deadline_is_422(client: httpx.AsyncClient, value: str) -> None:
    headers = {b"X-Request-Timeout-Ms": value.encode("latin-1")}
    response = await client.post("/predict", content=picture(0), headers=headers)
    assert_problem(response, 422, "invalid_parameter")


async def test_model_failure_is_500_without_details(open_client: OpenClient) -> None:
    async def fails(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        raise RuntimeError("/secret/path 0xdeadbeef")

    async with open_client(fails) as client:
        response = await client.post("/predict", content=picture(0))
    assert_problem(response, 500, "inference_failed")
    assert "secret" not in response.text


async def test_non_finite_logits_are_500(open_client: OpenClient) -> None:
    async def burns(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        scores = await runner.run(images)
        scores[0].logits[3] = np.nan
        return scores

    async with open_client(burns) as client:
        assert_problem(await client.post("/predict", content=picture(0)), 500, "inference_failed")
        metrics = metrics_of((await client.get("/metrics")).content)
        assert metrics['vit_images_total{outcome="inference_failed"}'] == 1


async def test_dead_worker_is_503_and_not_ready(open_client: OpenClient) -> None:
    async def dies(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        raise EngineDead

    async with open_client(dies) as client:
        for _ in range(2):  # the request that killed it, and the next
            assert_problem(await client.post("/predict", content=picture(0)), 503, "not_ready")
        problem = assert_problem(await client.get("/health/ready"), 503, "not_ready")
        assert problem["detail"] == "The inference worker has died."
        assert (await client.get("/health/live")).status_code == 200


async def test_unforeseen_error_is_a_500_problem(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("confidential")

    monkeypatch.setattr("app.api.predict.read_image", broken)
    async with open_client() as client:
        response = await client.post("/predict", content=picture(0))
    assert_problem(response, 500, "internal_error")
    assert "confidential" not in response.text
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_batch_keeps_order_and_isolates_errors(client: httpx.AsyncClient, form: str) -> None:
    images = [picture(0), b"", picture(1), b"hello", picture(2)]
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
        alone = (await client.post("/predict", params={"top_k": 2}, content=picture(seed))).json()
        del alone["model"], alone["activation"]
        assert answer["results"][position]["logits"] == pytest.approx(alone["logits"], abs=1e-5)
        assert set(answer["results"][position]) == set(alone)


async def test_bad_json_entry_fails_alone(open_client: OpenClient) -> None:
    good = base64_of(picture(0))
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
        alone = (await client.post("/predict", content=picture(0))).json()
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
        response = await client.post(
            "/predict/batch", files=[("images", image) for image in (picture(0), bytes(10_001), picture(1))]
        )
    codes = [result.get("error", {}).get("code") for result in response.json()["results"]]
    assert codes == [None, "image_too_large", None]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({}, 400, "malformed_request", id="empty"),
        pytest.param({"content": picture(0)}, 400, "malformed_request", id="raw"),
        pytest.param({"json": {"images": []}}, 400, "malformed_request", id="no-images"),
        pytest.param({"json": {"images": "abc"}}, 400, "malformed_request", id="not-a-list"),
        pytest.param({"files": [("images", picture(0))] * 4}, 422, "invalid_parameter", id="too-many-parts"),
        pytest.param({"json": {"images": [base64_of(picture(0))] * 4}}, 422, "invalid_parameter", id="too-many-strings"),
        pytest.param({"files": [("images", bytes(30_000))]}, 413, "image_too_large", id="too-many-bytes"),
    ],
)
async def test_invalid_batch_is_refused(open_client: OpenClient, body: dict[str, Any], status: int, code: str) -> None:
    async with open_client(max_images_per_request=3, max_request_bytes=20_000) as client:
        assert_problem(await client.post("/predict/batch", **body), status, code)


async def test_batch_over_the_queue_is_partly_refused(open_client: OpenClient) -> None:
    async with open_client(max_inflight_images=2) as client:
        response = await client.post("/predict/batch", files=[("images", picture(seed)) for seed in range(4)])
    codes = [result.get("error", {}).get("code") for result in response.json()["results"]]
    assert codes == [None, None, "queue_full", "queue_full"]
    assert int(response.headers["retry-after"]) >= 1

"""Requests, answers and retries as functions without input or output."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from client.tests.clocks import NOW, FakeTime
from client.tests.scripted_server import RESULT
from tests.support.models import encode, png, random_image
from vit_serve_client import BadImage, Failure, NotReady, Timeout, TooLarge, Unauthorized, VitError
from vit_serve_client.answers import Answer, check, read_model, read_result, read_results, retry_after_s, server_timing
from vit_serve_client.errors import BY_CODE
from vit_serve_client.images import MAX_FILE_BYTES, image_bytes, images_below, readable_bytes
from vit_serve_client.requests import chunks, target
from vit_serve_client.tries import Tries, back_off_s


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


def test_result_ignores_unknown_keys() -> None:
    result = read_result(answer(RESULT, X_Request_ID="7", Server_Timing="total;dur=9.5, decode;dur=1"))
    (prediction,) = result.predictions
    assert (prediction.label, prediction.class_index, prediction.probability, prediction.logit) == ("cat", 3, 0.9, 2.5)
    assert (result.logits, result.probabilities, result.model, result.request_id) == (None, None, "tiny", "7")
    assert result.timings == {"total": 9.5, "decode": 1}
    with pytest.raises(AttributeError):
        result.model = "other"  # type: ignore[misc]  # it is frozen


def test_batch_has_an_error_in_its_place() -> None:
    error = {"status": 422, "code": "undecodable_image", "detail": "It is corrupt."}
    body = {"model": "tiny", "activation": "none", "results": [{"error": error}, {**RESULT, "logits": [1, 2]}]}
    failure, result = read_results(answer(body, X_Request_ID="7"), 2)
    assert isinstance(failure, Failure) and isinstance(failure.error, BadImage)
    assert (failure.error.status, failure.error.request_id, str(failure.error)) == (422, "7", "It is corrupt.")
    assert not isinstance(result, Failure) and result.logits == (1.0, 2.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[" * 100_000,
        b"[]",
        b"null",
        {},
        {**RESULT, "predictions": None},
        {**RESULT, "predictions": [1]},
        {**RESULT, "predictions": [{"label": "cat"}]},
        {**RESULT, "logits": ["many"]},
    ],
    ids=lambda body: str(body)[:30],
)
def test_malformed_success_is_a_vit_error(body: Any) -> None:
    with pytest.raises(VitError) as caught:
        read_result(answer(body))
    assert (type(caught.value), caught.value.status) == (VitError, 200)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("rows", [[], [RESULT, RESULT], [{"error": {}}], [{"error": None}], [5], None, 5])
def test_malformed_batch_is_a_vit_error(rows: Any) -> None:
    with pytest.raises(VitError, match="has not the form"):
        read_results(answer({"model": "tiny", "activation": "none", "results": rows}), 1)


def test_model_lacking_a_key_is_an_error() -> None:
    with pytest.raises(VitError, match="architecture"):
        read_model(answer({"name": "tiny", "features": []}))


@pytest.mark.parametrize(("code", "kind"), BY_CODE.items())
def test_codes_decide_the_error(code: str, kind: type[VitError]) -> None:
    with pytest.raises(VitError) as caught:
        check(answer({"code": code, "detail": "Why."}, 418, Retry_After="3", X_Request_ID="7"), NOW)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.status, error.detail, error.request_id, error.retry_after) == (code, 418, "Why.", "7", 3)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(204, VitError), (301, VitError), (401, Unauthorized), (413, TooLarge), (500, VitError), (503, NotReady), (504, Timeout)],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"code": 5}', b"\xff", b'"code"'])
def test_status_decides_where_no_code_does(status: int, kind: type[VitError], body: bytes) -> None:
    with pytest.raises(VitError) as caught:
        check(answer(body, status), NOW)
    assert (type(caught.value), caught.value.status, caught.value.code) == (kind, status, None)


def test_unknown_status_is_described() -> None:
    with pytest.raises(VitError, match=r"^The answer is 599 \(of no type\)"):
        check(answer(b"", 599), NOW)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60),
        ("Sun Nov  6 08:50:37 1994", 60),
        ("Sun, 06 Nov 1993 08:50:37 GMT", 0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("9" * 400, float("inf")),
        ("-1", None),
        ("1.5", None),
        ("\u0663", None),
        ("soon", None),
        ("", None),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_server_timing_is_parsed_leniently() -> None:
    text = 'total;dur=9.1, decode;desc="a b";dur="1.5", cache, queue;dur=long, ;;,x;DUR=2'
    assert server_timing(text) == {"total": 9.1, "decode": 1.5, "x": 2}
    assert server_timing("") == {}


def test_chunks_are_bounded_in_images_and_bytes() -> None:
    error = VitError("It is missing.")
    assert list(chunks([b"a"] * 5, 2)) == [[b"a", b"a"], [b"a", b"a"], [b"a"]]
    assert list(chunks([b"aa", b"b", error, b"cccc", b"d"], 9, 3)) == [[b"aa", b"b", error], [b"cccc"], [b"d"]]
    assert list(chunks([], 2)) == []


def test_chunks_read_no_further_than_needed() -> None:
    images = iter([b"1", b"2", b"3", b"4"])
    assert next(chunks(images, 2)) == [b"1", b"2"]
    assert list(images) == [b"4"]


def test_target_is_read_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target(None, None).url == "http://127.0.0.1:8000"
    assert "Authorization" not in target(None, None).headers
    monkeypatch.setenv("VIT_SERVE_URL", "https://vit.example/api/")
    monkeypatch.setenv("VIT_SERVE_API_KEY", "secret\n")
    assert target(None, None).url == "https://vit.example/api"
    assert target(None, None).headers["Authorization"] == "Bearer secret"
    given = target("http://[::1]:9", "other")
    assert (given.url, given.headers["Authorization"]) == ("http://[::1]:9", "Bearer other")
    assert "Authorization" not in target(None, "").headers


@pytest.mark.parametrize(
    "url", ["vit.example", "ftp://vit.example", "http://", "http://u:p@vit", "http://vit?a=1", "http://a:b"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL"):
        target(url, None)


@pytest.mark.parametrize("key", ["two words", "a\nb", "schl\u00fcssel"])
def test_keys_that_fit_no_header_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        target(None, key)
    assert key not in str(caught.value)


def test_every_form_of_an_image_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1))
    forms: list[Any] = [png(1), bytearray(png(1)), memoryview(png(1)), path, str(path), io.BytesIO(png(1))]
    assert [image_bytes(form) for form in forms] == [png(1)] * len(forms)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_images_of_pillow_keep_their_pixels(mode: str) -> None:
    image = random_image(1).convert(mode)
    sent = Image.open(io.BytesIO(image_bytes(image)))
    assert sent.format == "PNG"
    assert sent.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("image", [5, None, io.StringIO("text")], ids=["number", "none", "text"])
def test_other_objects_are_refused(image: Any) -> None:
    with pytest.raises(TypeError):
        image_bytes(image)


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "big.png").touch()
    with open(tmp_path / "big.png", "r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert isinstance(readable_bytes(tmp_path / "big.png"), TooLarge)
    for path in (tmp_path, tmp_path / "missing.png", "/dev/null"):
        assert isinstance(readable_bytes(path), BadImage)
    with pytest.raises(FileNotFoundError):
        image_bytes(tmp_path / "missing.png")


def test_folder_is_walked_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    for name in ("z.PNG", "a.jpg", "notes.txt", "b/c.webp"):
        (tmp_path / name).write_bytes(encode(random_image(1)))
    assert [str(path.relative_to(tmp_path)) for path in images_below(tmp_path)] == ["a.jpg", "z.PNG", "b/c.webp"]


def test_folder_that_cannot_be_listed_is_yielded(tmp_path: Path) -> None:
    assert list(images_below(tmp_path / "missing")) == [tmp_path / "missing"]


def test_back_off_has_full_jitter() -> None:
    assert [back_off_s(retry, 1) for retry in range(6)] == [0.5, 1, 2, 4, 8, 8]
    assert back_off_s(3, 0) == 0
    assert back_off_s(10**6, 0.25) == 2


def test_tries_end_with_their_deadline() -> None:
    time = FakeTime()
    tries = Tries(10, 5, time.clocks)
    time.sleep(9)
    assert tries.left_s() == 1
    assert tries.wait_s(VitError("Busy.", status=503, retry_after=0.5)) == 0.5
    with pytest.raises(VitError, match="Busy"):
        tries.wait_s(VitError("Busy.", status=503, retry_after=1))
    time.sleep(1)
    with pytest.raises(Timeout, match="within 10 s"):
        tries.left_s()

"""JSON bodies: the same result as json.loads in strict mode, for any split into chunks."""

import base64
import json
import random
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from app.api.payloads.base64_image import decode_image
from app.api.payloads.json_object import JsonString
from app.errors import ImageTooLarge
from app.http.time_slices import Steps
from tests.app.conftest import OpenClient
from tests.support.models import png
from tests.support.predict import assert_problem, base64_of

JSON = {"Content-Type": "application/json"}
IMAGE = base64_of(png(0))

SPICE = ('"', "\\", "\\u", "\\u00", "\\ud83d", ",", ":", "{", "}", "[", "]", "\0", "\n", "\xe9", "1", "NaN", "tru", "=")


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def status_of(client: httpx.AsyncClient, body: bytes, size: int = 1 << 20) -> int:
    response = await client.post("/predict?vectors=false", content=pieces(body, size), headers=JSON)
    return response.status_code


SAME: dict[str, str] = {
    "plain": '{"image": "@"}',
    "escaped-slashes": '{"image": "@"}'.replace("@", IMAGE.replace("/", r"\/")),
    "escaped-plus-signs": '{"image": "@"}'.replace("@", IMAGE.replace("+", r"\u002b").replace("A", r"\u0041")),
    "escaped-key": r'{"im\u0061ge": "@"}',
    "line-breaks": '{"image": "@"}'.replace("@", r"\r\n\t ".join(re.findall(".{1,76}", IMAGE))),
    "data-uri": '{"image": "data:image/png;base64,@"}',
    "data-uri-escaped": r'{"image": "d\u0061ta:image\/png;base64,@"}',
    "beside-others": '{"a": {"b": [1, -2.5e300, true, null, {"c": "\\"[{,"}]}, "image": "@", "\xe9\U0001f600": "\u6f22"}',
    "long-number": '{"n": 9, "image": "@"}'.replace("9", "9" * 5000),
    "long-string": '{"n": "9", "image": "@"}'.replace("9", r"\u00e9\"\\" * 20_000),
    "blanks": ' \t\r\n{ "image"\n:\t"@" }\r\n',
}
"""JSON bodies with `@` in place of the image."""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in SAME.items()])
async def test_json_in_any_spelling_and_encoding(client: httpx.AsyncClient, body: str, encoding: str) -> None:
    expected = (await client.post("/predict", content=png(0))).json()["logits"]
    for size in (1, 1 << 20) if encoding == "utf-8" and len(body) < 10_000 else (97,):
        content = pieces(body.replace("@", IMAGE).encode(encoding), size)
        response = await client.post("/predict", content=content, headers=JSON)
        assert response.status_code == 200, response.text
        assert response.json()["logits"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"image": "@', id="open-string"),
        pytest.param(b'{"image": "@\\', id="open-escape"),
        pytest.param(b'{"image": "@"', id="open-object"),
        pytest.param(b'{"image": "@"}}', id="too-much"),
        pytest.param(b'{"image": "@"} {}', id="two-values"),
        pytest.param(b'{"image": "@",}', id="comma-at-the-end"),
        pytest.param(b'{"image" "@"}', id="no-colon"),
        pytest.param(b"{'image': '@'}", id="single-quotes"),
        pytest.param(b'{image: "@"}', id="bare-key"),
        pytest.param(b'{"image": "@\n"}', id="bare-line-break"),
        pytest.param(b'{"image": "@\\q"}', id="unknown-escape"),
        pytest.param(b'{"image": "@\\u00g0"}', id="odd-escape"),
        pytest.param(b'{"image": "@\\u00"}', id="short-escape"),
        pytest.param(b'{"image": "@", "a": NaN}', id="nan"),
        pytest.param(b'{"image": "@", "a": -Infinity}', id="infinity"),
        pytest.param(b'{"image": "@", "a": 01}', id="leading-zero"),
        pytest.param(b'{"image": "@", "a": "\xff"}', id="no-utf-8"),
        pytest.param(b'{"image": "@", "a": "\xed\xa0\x80"}', id="surrogate-in-utf-8"),
        pytest.param(b'{"image": "@", "a": "\xc3', id="half-a-character"),
        pytest.param(b'{"image": "@"}\x00', id="nul-behind"),
        pytest.param(b'{"image": "@" \x0c}', id="form-feed"),
        pytest.param(b'{"image": "@"}\xc2\xa0', id="no-break-space"),
    ],
)
async def test_invalid_json_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    for size in (1, 1 << 20):
        content = pieces(body.replace(b"@", IMAGE.encode()), size)
        problem = assert_problem(await client.post("/predict", content=content, headers=JSON), 400, "malformed_request")
        assert problem["detail"] == "The body is not valid JSON."


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"image": "AAAA", "image": "@"}', id="image"),
        pytest.param('{"image": "@", "note": 1, "note": 1}', id="another"),
        pytest.param(r'{"image": "@", "note": 1, "n\u006fte": 1}', id="escaped"),
        pytest.param('{"image": "@", "note": [{"a": {"b": 1, "b": 2}}]}', id="nested"),
        pytest.param('{"image": "@", "": 1, "": 2}', id="empty"),
    ],
)
async def test_json_key_given_twice_is_400(client: httpx.AsyncClient, body: str) -> None:
    response = await client.post("/predict", content=body.replace("@", IMAGE).encode(), headers=JSON)
    assert "key twice" in assert_problem(response, 400, "malformed_request")["detail"]
    batch = body.replace("image", "images").replace('"@"', '["@"]').replace("@", IMAGE)
    response = await client.post("/predict/batch", content=batch.encode(), headers=JSON)
    assert "key twice" in assert_problem(response, 400, "malformed_request")["detail"]


async def test_same_key_in_two_objects_is_valid(client: httpx.AsyncClient) -> None:
    body = '{"a": {"image": "1"}, "b": [{"image": 2}, {"image": 3}], "image": "@"}'
    assert await status_of(client, body.replace("@", IMAGE).encode()) == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b'{"%b": 1}' % (b"k" * 1025), "A key in the JSON body is longer than 1024 bytes", id="long-key"),
        pytest.param(b'{"a": %b1}' % (b" " * 100_000), "far more than images", id="blanks"),
        pytest.param(b'{"a": %b}' % (b"1" * 100_000), "far more than images", id="digits"),
        pytest.param(b'""' * 50_000, "far more than images", id="strings"),
        pytest.param(b'{"a": [%b0]}' % (b"0," * 100), "far more than images", id="values"),
        pytest.param(b'{"a": %b%b}' % (b"[" * 80, b"]" * 80), "far more than images", id="depth"),
    ],
)
async def test_json_with_many_values_is_400(client: httpx.AsyncClient, body: bytes, says: str) -> None:
    response = await client.post("/predict", content=body, headers=JSON)
    assert says in assert_problem(response, 400, "malformed_request")["detail"]


async def test_deeply_nested_lists_are_400(open_client: OpenClient) -> None:
    async with open_client(max_images_per_request=1000) as client:
        body = b'{"images": %b%b}' % (b"[" * 5000, b"]" * 5000)
        assert_problem(await client.post("/predict/batch", content=body, headers=JSON), 400, "malformed_request")


@pytest.mark.parametrize(
    "characters", ["A", "AB", "ABC", "AB=", "AB=C", "A===", "=AAA", "AA==AAAA", "AAAA====", "AA-_", "AÄAA", "A\\u0000AA"]
)
@pytest.mark.parametrize("size", [0, 100_000], ids=["short", "long"])
async def test_invalid_base64_is_400(client: httpx.AsyncClient, characters: str, size: int) -> None:
    for text in ("A" * size + characters, "A" * (size - size % 32768) + characters + "A" * size):
        if text == characters or size:
            response = await client.post("/predict", content=b'{"image": "%b"}' % text.encode(), headers=JSON)
            assert "not valid base64" in assert_problem(response, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 24_574, 24_575, 24_576, 24_577, 300_000])
def test_base64_decodes_every_byte(size: int) -> None:
    image = random.Random(size).randbytes(size)
    plain = base64.b64encode(image)
    for text in (
        plain,
        base64.encodebytes(image).replace(b"\n", rb"\n"),
        plain.replace(b"/", rb"\/"),
        plain.replace(b"A", rb"\u0041"),
    ):
        assert result_of(decode_image(json_string(text), size)) == image
        if size:
            with pytest.raises(ImageTooLarge):
                result_of(decode_image(json_string(text), size - 1))


def test_decoding_frees_the_string() -> None:
    image = random.Random(0).randbytes(600_000)
    tracemalloc.start()
    try:
        string = json_string(base64.b64encode(image))
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        assert result_of(decode_image(string, len(image))) == image
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 800_000
    assert peak < before + 200_000


def json_string(escaped: bytes) -> JsonString:
    string = JsonString()
    for character in re.finditer(rb"\\u....|\\.|[^\\]", escaped):
        string.append(character.group())
    return string


def result_of(steps: Steps[bytes]) -> bytes:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def values(generator: random.Random, depth: int = 0) -> Any:
    kind = generator.randrange(6)
    if kind == 0 and depth < 3:
        return [values(generator, depth + 1) for _ in range(generator.randrange(3))]
    if kind == 1 and depth < 3:
        return {text(generator): values(generator, depth + 1) for _ in range(generator.randrange(3))}
    return generator.choice([1, -2.5e10, 10**30, True, None]) if kind == 2 else text(generator)


def text(generator: random.Random) -> str:
    return "".join(
        generator.choices(["a", "/", "\\", '"', "\xe9", "\u6f22", "\U0001f600", "\n", "\1", " "], k=generator.randrange(12))
    )


def mutants(number: int) -> Iterator[bytes]:
    """Yield JSON documents, most of them with a few wrong characters, the same ones each time."""
    for seed in range(number):
        generator = random.Random(seed)
        content = {text(generator): values(generator) for _ in range(3)} | {"image": IMAGE}
        body = json.dumps(content, ensure_ascii=generator.random() < 0.5, indent=generator.choice([None, 1]))
        for _ in range(generator.randrange(3)):
            start = generator.randrange(len(body))
            body = body[:start] + generator.choice(SPICE) + body[start + generator.randrange(3) :]
        yield body.encode(generator.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16-le"]))


def is_valid(body: bytes) -> bool:
    """Parse with json.loads, and refuse what Python accepts beyond JSON."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    def refuse(_: str) -> None:
        raise ValueError

    try:
        json.loads(body.decode(json.detect_encoding(body)), object_pairs_hook=unique, parse_constant=refuse)
    except ValueError:
        return False
    return True


async def test_mutated_json_is_read_if_valid(client: httpx.AsyncClient) -> None:
    seen = set()
    for number, body in enumerate(mutants(400)):
        response = await client.post("/predict?vectors=false", content=pieces(body, 1 + number % 40), headers=JSON)
        broken = "valid JSON" in response.text or "key twice" in response.text
        assert is_valid(body) != broken, (body, response.text)
        seen.add(response.status_code)
    assert {200, 400} <= seen <= {200, 400, 415, 422}

"""API keys: headers, settings and file, reload, and secrecy."""

import asyncio
import hmac
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.auth import api_keys
from app.auth.api_keys import MAX_KEY_BYTES, ApiKeys
from app.errors import StartError
from model.checkpoints.tensors.regular_file import read_file
from tests.app.conftest import OpenClient
from tests.support.clock import Clock
from tests.support.models import png
from tests.support.predict import assert_problem
from tests.support.server import Server, running_server

FilePath = Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(b"# of the shop\n\nfirst\n  second\t\r\nof \xff odd bytes\n")
    return path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="none"),
        pytest.param({"Authorization": "Bearer wrong"}, 401, id="wrong"),
        pytest.param({"Authorization": "Bearer "}, 401, id="empty"),
        pytest.param({"Authorization": "Bearer secre"}, 401, id="a-beginning"),
        pytest.param({"Authorization": "Basic secret"}, 401, id="another-scheme"),
        pytest.param({"X-API-Key": "secret"}, 200, id="x-api-key"),
        pytest.param({"Authorization": "Bearer secret"}, 200, id="bearer"),
        pytest.param({"Authorization": "bearer  other"}, 200, id="another-spelling"),
        pytest.param({"X-API-Key": "schlüssel".encode()}, 200, id="utf-8"),
        pytest.param({"X-API-Key": "schlüssel".encode("latin-1")}, 401, id="latin-1"),
        pytest.param({"X-API-Key": b"\xff\xfe"}, 401, id="odd-bytes"),
    ],
)
async def test_routes_that_need_a_key(open_client: OpenClient, headers: dict[str, Any], status: int) -> None:
    async with open_client(api_keys="secret,other,schlüssel") as client:
        for call in (client.post("/predict", content=png(0), headers=headers), client.get("/model", headers=headers)):
            response = await call
            assert response.status_code == status
            if status == 401:
                assert_problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


async def test_missing_key_leaves_body_unread(open_client: OpenClient) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield png(0)

    async with open_client(api_keys="secret") as client:
        assert_problem(await client.post("/predict", content=body()), 401, "unauthorized")
    assert read == 0


@pytest.mark.parametrize("last", ["\u00e0", "\u0405", "\u3000x"])
async def test_key_ends_with_any_byte(open_client: OpenClient, last: str) -> None:
    key = f"voil{last}".encode()  # its last byte is a blank in Latin-1
    async with open_client(api_keys=key.decode()) as client:
        for headers in ({b"X-API-Key": key}, {b"Authorization": b"Bearer " + key}):
            assert (await client.get("/model", headers=headers)).status_code == 200


@pytest.mark.parametrize("byte", [0, 1, 11, 12, 27, 31, 127])
async def test_unsendable_key_is_refused(tmp_path: Path, byte: int) -> None:
    key = b"a" + bytes([byte]) + b"b"
    with pytest.raises(StartError, match="VIT_API_KEYS: a key has a control character"):
        ApiKeys([key])
    (tmp_path / "keys").write_bytes(b"good\n" + key + b"\n")
    with pytest.raises(StartError, match="cannot be used: a key has a control character"):
        ApiKeys([], tmp_path / "keys")


async def test_keys_from_settings_and_file(open_client: OpenClient, file: Path) -> None:
    async with open_client(api_keys="given", api_keys_file=file) as client:
        for key in (b"given", b"first", b"second", b"of \xff odd bytes"):
            assert (await client.get("/model", headers={b"X-API-Key": key})).status_code == 200
        for key in (b"# of the shop", b"#", b"of  odd bytes"):
            assert (await client.get("/model", headers={b"Authorization": b"Bearer " + key})).status_code == 401


async def test_only_whole_keys_are_valid() -> None:
    keys = ApiKeys([b"a", b"bb" * 100, b"c"])
    for valid in (b"a", b"bb" * 100, b"c"):
        assert await keys.identify(valid) is not None
        for wrong in (valid[:-1], valid + b"a", valid.upper(), b" " + valid, b""):
            assert await keys.identify(wrong) is None


async def test_key_name_is_stable_and_secret() -> None:
    keys = ApiKeys([b"one", b"two"])
    names = [await keys.identify(key) for key in (b"one", b"two", b"one")]
    assert names[0] == names[2] != names[1]
    assert "one" not in str(names[0])
    assert await ApiKeys([b"one"]).identify(b"one") != names[0]  # each process has its own secret


async def test_overlong_key_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = b"x" * MAX_KEY_BYTES
    keys = ApiKeys([longest])
    assert await keys.identify(longest) is not None
    with monkeypatch.context() as without_hashes:
        without_hashes.delattr(hmac, "digest")
        assert await keys.identify(longest + b"x") is None
    with pytest.raises(StartError, match="VIT_API_KEYS: a key is longer than 1024 bytes"):
        ApiKeys([longest + b"x"])


def replaced(file: Path, content: bytes) -> None:
    """Replace the file by another one, as a careful operator does."""
    (file.parent / "new").write_bytes(content)
    os.replace(file.parent / "new", file)


def swapped(file: Path, content: bytes) -> None:
    """Replace the file by a symbolic link to another one, as Kubernetes does."""
    target = file.parent / f"of-{len(content)}"
    target.write_bytes(content)
    (file.parent / "link").symlink_to(target)
    os.replace(file.parent / "link", file)


def written(file: Path, content: bytes) -> None:
    """Overwrite the file in place, and keep its size and times."""
    before = file.stat()
    file.write_bytes(content.ljust(before.st_size, b"\n"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, swapped, written])
async def test_changed_file_is_reloaded(file: Path, change: Callable[[Path, bytes], None]) -> None:
    clock = Clock()
    keys = ApiKeys([b"given"], file, clock)
    change(file, b"third\n")
    assert await keys.identify(b"first") is not None  # not due yet: once a second is enough
    clock.now += 1
    assert await keys.identify(b"first") is None
    assert await keys.identify(b"third") is not None
    assert await keys.identify(b"given") is not None


def pipe_instead(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(FilePath.unlink, "No such file or directory", id="gone"),
        pytest.param(lambda file: file.write_bytes(b""), "there is no key in it", id="empty"),
        pytest.param(lambda file: file.write_bytes(b"# none\n\n"), "there is no key in it", id="comments"),
        pytest.param(lambda file: file.write_bytes(b"x\n" * 600_000), "it is larger than 1048576 bytes", id="large"),
        pytest.param(lambda file: file.write_bytes(b"x" * 2000), "a key is longer than 1024 bytes", id="long-key"),
        pytest.param(
            lambda file: file.write_text("\n".join(map(str, range(1001)))), "there are more than 1000 keys", id="many-keys"
        ),
        pytest.param(lambda file: (file.unlink(), file.mkdir()), "Is a directory", id="directory"),
        pytest.param(pipe_instead, "it is no regular file", id="pipe"),
    ],
)
async def test_unusable_file_keeps_the_last_keys(
    file: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], reason: str
) -> None:
    clock = Clock()
    keys = ApiKeys([], file, clock)
    spoil(file)
    for _ in range(3):
        clock.now += 1
        assert await keys.identify(b"first") is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not at every reload
    assert reason in caplog.text
    with pytest.raises(StartError) as caught:
        ApiKeys([], file, clock)
    assert str(caught.value) == f"VIT_API_KEYS_FILE: {file} cannot be used: {reason}"


async def test_mended_file_is_reloaded_and_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    keys = ApiKeys([], file, clock)
    replaced(file, b"")
    clock.now += 1
    await keys.identify(b"first")
    replaced(file, b"third")
    clock.now += 1
    assert await keys.identify(b"third") is not None
    assert await keys.identify(b"first") is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "third" not in caplog.text


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event; until it is set, each read of a file hangs."""
    answers = threading.Event()

    def read(file: Path, max_bytes: int) -> bytes:
        answers.wait()
        return read_file(file, max_bytes)

    monkeypatch.setattr(api_keys, "read_file", read)
    yield answers
    answers.set()


async def test_slow_disk_delays_one_request(file: Path, hung_disk: threading.Event) -> None:
    hung_disk.set()
    clock = Clock()
    keys = ApiKeys([], file, clock)
    hung_disk.clear()
    replaced(file, b"third")
    clock.now += 1
    waiting = asyncio.create_task(keys.identify(b"third"))
    await asyncio.sleep(0)
    clock.now += 10
    assert await keys.identify(b"second") is not None  # and starts no second reload
    assert not waiting.done()
    hung_disk.set()
    assert await waiting is not None


async def test_hung_disk_keeps_the_last_keys(
    file: Path, hung_disk: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api_keys, "_RELOAD_TIMEOUT_S", 0.05)
    hung_disk.set()
    clock = Clock()
    keys = ApiKeys([], file, clock)
    hung_disk.clear()
    for _ in range(3):
        clock.now += 1
        assert await keys.identify(b"first") is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # one reload hangs, and no other is started
    assert "its disk does not answer; the last keys stay valid" in caplog.text


@pytest.mark.parametrize("content", [None, b"# nothing yet\n"])
def test_unusable_file_stops_the_start(tiny_checkpoint: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    server = Server(model=tiny_checkpoint, api_keys_file=file)
    assert "cannot be used" in server.wait_for_log(f"vit-serve: VIT_API_KEYS_FILE: {file}")["event"]
    assert server.wait() == 1
    with pytest.raises(AssertionError, match="the server ended with 1"):
        server.wait_for_log("anything more")


def test_server_reloads_keys_and_logs_none(tiny_checkpoint: Path, file: Path) -> None:
    file.write_bytes(b"key-of-yesterday")
    with running_server(model=tiny_checkpoint, api_keys="key-of-always", api_keys_file=file, log_level="debug") as server:
        with httpx.Client(base_url=server.url) as client:

            def status(key: str) -> int:
                return client.get("/model", headers={"Authorization": f"Bearer {key}"}).status_code

            assert (status("key-of-yesterday"), status("key-of-today")) == (200, 401)
            file.write_bytes(b"key-of-today")
            while status("key-of-today") != 200:  # within a second; the test's timeout ends it otherwise
                pass
            assert (status("key-of-yesterday"), status("key-of-always")) == (401, 200)
        server.stop()
        server.wait_for_log("Finished server process")
    assert any(record["event"] == "read API keys again" for record in server.log)
    assert "key-of" not in str(server.log)


async def test_repr_shows_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"hunter2")
    keys = ApiKeys([b"swordfish"], tmp_path / "keys")
    assert await keys.identify(b"swordfish")
    assert not re.search("hunter2|swordfish", repr(vars(keys)))


async def test_key_in_environment_with_odd_bytes(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_API_KEYS", os.fsdecode(b"\xff"))
    async with open_client() as client:
        assert (await client.get("/model", headers={b"X-API-Key": b"\xff"})).status_code == 200
        assert (await client.get("/model", headers={b"X-API-Key": b"?"})).status_code == 401

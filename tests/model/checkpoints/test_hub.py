"""Models by hub id, from a small server on this machine that speaks the hub's file routes; HF_ENDPOINT leads to it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves `me/tiny` at the revisions `main` and `v1`, refuses `me/secret` and `me/private`, and knows nothing else."""

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = files, set[str]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "models", "me", "private", *_] | ["me", "private", *_]:
                self._refuse(401, "")
            case ["api", "models", "me", "ill", *_]:
                self._refuse(500, "")
            case ["api", "models", "me", "secret", *_] | ["me", "secret", *_]:
                self._refuse(403, "GatedRepo")
            case ["api", "models", "me", "tiny", "revision", "main" | "v1"] | ["api", "models", "me", "tiny"]:
                siblings = [{"rfilename": path.name} for path in sorted(self.server.files.iterdir())]
                self._send(json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": siblings}).encode(), with_body)
            case ["api", "models", "me", "tiny", "tree", *_]:
                tree = [
                    {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                    for path in sorted(self.server.files.iterdir())
                ]
                self._send(json.dumps(tree).encode(), with_body)
            case ["api", "models", "me", "tiny", "revision", *_]:
                self._refuse(404, "RevisionNotFound")
            case ["me", "tiny", "resolve", _, name]:
                self.server.asked.add(name)
                self._send((self.server.files / name).read_bytes(), with_body)
            case _:
                self._refuse(404, "RepoNotFound")

    def _send(self, body: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    files = tmp_path / "files"
    files.mkdir()
    for path in tiny_checkpoint.iterdir():
        (files / path.name).write_bytes(path.read_bytes())
    (files / "pytorch_model.bin").write_bytes(b"not needed")
    server = Hub(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def info(model: str, endpoint: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`vit-serve info`, in a process of its own: huggingface_hub reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), **variables}
    command = [str(Path(sys.executable).parent / "vit-serve"), "info", model, "--json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("model", ["me/tiny", "hf-hub:me/tiny", "me/tiny@v1"])
def test_hub_id_downloads_only_needed_files(hub: Hub, tmp_path: Path, model: str) -> None:
    result = info(model, hub.url, tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["name"] == model.removeprefix("hf-hub:")
    assert hub.asked == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_what_is_in_the_cache_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    assert info("me/tiny", hub.url, tmp_path / "cache").returncode == 0
    for variables in ({"HF_HUB_OFFLINE": "1"}, {}):
        result = info("me/tiny", "http://127.0.0.1:1", tmp_path / "cache", **variables)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("me/secret", "me/secret asks for a token with access: set HF_TOKEN"),
        ("me/private", "the hub answered 401 to me/private: check HF_TOKEN"),
        ("me/nothing", "there is no me/nothing on the hub, or it is private"),
        ("me/ill", "there is no path me/ill here, and as a hub id it is not in the cache, and the hub answered 500"),
        ("me/tiny@v9", "me/tiny has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Hub, tmp_path: Path, model: str, says: str) -> None:
    result = info(model, hub.url, tmp_path / "cache")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vit-serve: VIT_MODEL: {says}")
    assert len(result.stderr.splitlines()) == 1


def test_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    result = info("me/tiny", "http://127.0.0.1:1", tmp_path / "cache")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "vit-serve: VIT_MODEL: there is no path me/tiny here, and as a hub id it is not in the cache"
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_hub_that_may_not_be_asked_is_told(tmp_path: Path) -> None:
    result = info("me/tiny", "http://127.0.0.1:1", tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert result.stderr.startswith("vit-serve: VIT_MODEL: there is no path me/tiny here")
    assert "HF_HUB_OFFLINE forbids to ask the hub" in result.stderr


def test_model_without_safetensors_loads_pickle(hub: Hub, tmp_path: Path) -> None:
    torch.save(load_file(hub.files / "model.safetensors"), hub.files / "pytorch_model.bin")
    (hub.files / "model.safetensors").unlink()
    result = info("me/tiny", hub.url, tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert hub.asked == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}


def test_user_without_home_is_told_to_set_hf_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*arguments: object, **options: object) -> str:
        return str(Path("~nobody-has-this-name/cache").expanduser())

    monkeypatch.setattr("huggingface_hub.snapshot_download", homeless)
    with pytest.raises(CheckpointError, match=r"Could not determine home directory\. Set HF_HOME to a directory"):
        load_checkpoint("google/vit-base-patch16-224")

"""The client scripts, as a user runs them: against a real server, in processes of their own."""

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import ROOT, png
from tests.support.server import Server, running_server


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, api_keys="secret", max_inflight_images=2) as server:
        yield server


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_one_image_is_ranked(server: Server) -> None:
    cat = ROOT / "examples" / "images" / "cat.jpg"
    result = run("classify_image.py", cat, "--url", server.url, "--api-key", "secret", "--top-k", 2)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 2
    assert "class " in result.stdout


def test_values_without_activation_are_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    with running_server(model=tiny_checkpoint, activation="none") as server:
        one = run("classify_image.py", tmp_path / "a.png", "--url", server.url, "--top-k", 1)
        folder = run("classify_folder.py", tmp_path, "--url", server.url)
    assert (one.returncode, one.stderr) == (0, "")
    assert "%" not in one.stdout
    (row,) = csv.DictReader(io.StringIO(folder.stdout))
    assert row["probability"] == ""
    assert one.stdout.split() == [f"{float(row['logit']):.6g}", *row["label"].split()]


def test_refusal_of_one_image_is_explained(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    without_key = run("classify_image.py", tmp_path / "a.png", "--url", server.url)
    assert (without_key.returncode, "valid API key" in without_key.stderr) == (1, True)
    not_an_image = run("classify_image.py", tmp_path / "a.png", "--url", server.url, "--api-key", "secret")
    assert (not_an_image.returncode, "not an image" in not_an_image.stderr) == (1, True)


def test_folder_is_classified_despite_full_queue(server: Server, tmp_path: Path) -> None:
    for seed in range(12):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    (tmp_path / "broken.png").write_bytes(png(0)[:200])
    output = tmp_path / "labels.csv"
    arguments = ("--url", server.url, "--api-key", "secret", "--concurrency", 4, "--tries", 50, "--output", output)
    result = run("classify_folder.py", tmp_path, *arguments)
    assert result.returncode == 1  # one is broken
    rows = {Path(row["path"]).name: row for row in csv.DictReader(io.StringIO(output.read_text()))}
    assert len(rows) == 13
    assert rows.pop("broken.png")["error"] == "The image is truncated or corrupt."
    assert all(row["label"].startswith("class ") and not row["error"] for row in rows.values())


def test_missing_server_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    one = run("classify_image.py", tmp_path / "a.png", "--url", "http://127.0.0.1:1")
    assert (one.returncode, "cannot reach http://127.0.0.1:1" in one.stderr) == (1, True)
    folder = run("classify_folder.py", tmp_path, "--url", "http://127.0.0.1:1", "--tries", 1)
    assert folder.returncode == 1
    assert "ConnectError" in folder.stdout

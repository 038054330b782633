"""Client scripts, run as a user does against a real server."""

import asyncio
import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from examples.classify_folder import SUFFIXES, classify_all, seconds_until_retry
from tests.support.models import ROOT, TINY_LABELS, png, random_image
from tests.support.server import Server, running_server
from vit_serve_client import VitClient


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, api_keys="secret", max_inflight_images=2) as server:
        yield server


def run(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


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
    assert (not_an_image.returncode, "image of a known format" in not_an_image.stderr) == (1, True)


def test_folder_is_classified_despite_full_queue(server: Server, tmp_path: Path) -> None:
    for seed, suffix in enumerate([*sorted(SUFFIXES), ".PNG"]):
        (tmp_path / f"{seed}{suffix}").write_bytes(png(seed))
    (tmp_path / "broken.png").write_bytes(png(0)[:200])
    output = tmp_path / "labels.csv"
    arguments = ("--url", server.url, "--api-key", "secret", "--concurrency", 4, "--tries", 50, "--output", output)
    result = run("classify_folder.py", tmp_path, *arguments)
    assert result.returncode == 1  # one is broken
    rows = {Path(row["path"]).name: row for row in csv.DictReader(io.StringIO(output.read_text()))}
    assert len(rows) == 13
    assert rows.pop("broken.png")["error"] == "The image is truncated or corrupt."
    assert all(row["label"].startswith("class ") and not row["error"] for row in rows.values())


def test_images_are_classified_with_the_client(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b.png").write_bytes(b"no image")
    result = run(
        "classify_with_client.py", tmp_path / "a.png", tmp_path / "b.png", "--url", server.url, VIT_SERVE_API_KEY="secret"
    )
    assert (result.returncode, result.stderr) == (1, "")
    model, good, bad = result.stdout.splitlines()
    assert model == "tiny-dinov2 on cpu"
    assert good.startswith(f"{tmp_path / 'a.png'}: class ") and good.endswith("%")
    assert "image of a known format" in bad


def test_similar_images_are_drawn(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png(seed))
    (folder / "deeper" / "same.PNG").write_bytes(png(7))
    (folder / "bad.png").write_bytes(b"no image")
    (tmp_path / "query.png").write_bytes(png(7))
    arguments = ("--out", tmp_path / "sheet.png", "--count", 2, "--url", server.url)
    result = run("similar_images.py", folder, tmp_path / "query.png", *arguments, VIT_SERVE_API_KEY="secret")
    assert (result.returncode, result.stderr) == (0, "")
    refused, first, second = result.stdout.splitlines()
    assert refused.startswith(f"{folder / 'bad.png'}: ") and "image of a known format" in refused
    assert (first.split()[1], abs(float(first.split()[0])) < 1e-3) == (str(folder / "deeper" / "same.PNG"), True)
    assert float(second.split()[0]) > 1e-3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 150, 170)
        pictures = [np.array(sheet.crop((150 * column, 0, 150 * column + 150, 150))) for column in range(3)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    nothing = run("similar_images.py", folder, folder / "bad.png", *arguments, VIT_SERVE_API_KEY="secret")
    assert (nothing.returncode, "nothing to compare" in nothing.stderr) == (1, True)


def test_cvat_function_tags_images(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
    from examples.cvat_function import create

    monkeypatch.setenv("VIT_SERVE_API_KEY", "secret")
    image = random_image(0)
    with VitClient(server.url) as client, closing(create(server.url)) as function:
        best = client.classify(image).predictions[0]
        assert [label.name for label in function.spec.labels] == list(TINY_LABELS)
        assert function.detect(SimpleNamespace(conf_threshold=None), image) == [cvataa.tag(best.class_index)]
        assert function.detect(SimpleNamespace(conf_threshold=1.0), image) == []


def test_missing_server_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    one = run("classify_image.py", tmp_path / "a.png", "--url", "http://127.0.0.1:1")
    assert (one.returncode, "cannot reach http://127.0.0.1:1" in one.stderr) == (1, True)
    folder = run("classify_folder.py", tmp_path, "--url", "http://127.0.0.1:1", "--tries", 1)
    assert folder.returncode == 1
    assert "ConnectError" in folder.stdout


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("Sun Nov  6 08:49:37 1994", 0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 1),
        ("9" * 400, 300),
        ("soon", 1),
    ],
    ids=lambda value: str(value)[:40],
)
def test_retry_after_is_seconds_or_date(retry_after: str, seconds: float) -> None:
    assert seconds_until_retry(retry_after) == seconds


def test_retry_after_of_future_date_is_capped() -> None:
    now = datetime.now(UTC)
    asked = format_datetime(now + timedelta(seconds=200), usegmt=True)
    assert 198 - (datetime.now(UTC) - now).total_seconds() <= seconds_until_retry(asked) <= 200
    assert seconds_until_retry(format_datetime(now + timedelta(days=1), usegmt=True)) == 300


async def test_folder_tasks_are_bounded(tmp_path: Path) -> None:
    images = [tmp_path / f"{index}.png" for index in range(50)]
    for image in images:
        image.write_bytes(b"image")
    tasks = []

    async def answer(request: httpx.Request) -> httpx.Response:
        tasks.append(len(asyncio.all_tasks()))
        return httpx.Response(200, json={"predictions": [{"label": "cat", "probability": 1.0, "logit": 9.0}]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://test") as client:
        rows = [row async for row in classify_all(client, images, concurrency=4, tries=1)]
    assert {row["path"] for row in rows} == set(images)
    assert max(tasks) <= 4 + 1

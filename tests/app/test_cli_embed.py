"""The command `vit-serve embed`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.process.logs import configure_logging
from app.serving.offline import run, running_classifier
from app.settings import read_settings
from tests.support.models import png
from tests.support.server import default_signals


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    configure_logging("info", "json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        (folder / f"{name}.png").write_bytes(png(seed))
    (folder / "b.png").write_bytes(b"no image")
    return folder


def embed(folder: Path, file: Path, model: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["embed", str(folder), "--out", str(file), "--model", str(model), *options])


def test_features_are_written_by_path(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = embed(folder, tmp_path / "features.parquet", tiny_checkpoint, "--normalize")
    assert ended.exit_code == 1
    table = pq.read_table(tmp_path / "features.parquet").to_pylist()
    assert [Path(row["path"]).name for row in table] == ["a.png", "b.png", "c.png"]
    good, bad, other = table
    assert (bad["embedding"], good["error"]) == (None, None)
    assert "no image" in bad["error"]
    assert np.linalg.norm(good["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(other["embedding"]) == 64
    assert not (tmp_path / "features.parquet.parts").exists()


async def vector(model: Path) -> np.ndarray:
    async with running_classifier(read_settings(model=str(model))) as classifier:
        return (await classifier.embed(png(0), classifier.check_features(None))).vector


def test_features_equal_those_of_a_classifier(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = embed(folder / "a.png", tmp_path / "f.parquet", tiny_checkpoint)
    assert ended.exit_code == 0, ended.output
    (row,) = pq.read_table(tmp_path / "f.parquet").to_pylist()
    np.testing.assert_allclose(row["embedding"], run(vector(tiny_checkpoint)), atol=1e-4)


def test_interrupted_command_goes_on(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.parquet"
    endless = tmp_path / "endless.png"
    os.mkfifo(endless)  # whose reading never ends
    options = ("--out", file, "--model", tiny_checkpoint)
    command = [sys.executable, "-m", "app.cli", "embed", folder, endless, *options]
    with default_signals():
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as errors:
        assert any("b.png" in line for line in errors)
        process.send_signal(signal.SIGINT)
        assert "goes on from here" in errors.read()
    assert process.wait() == 130
    (folder / "b.png").write_bytes(png(7))
    ended = embed(folder, file, tiny_checkpoint)
    assert ended.exit_code == 0, ended.output
    rows = pq.read_table(file).to_pylist()
    assert sorted(Path(row["path"]).name for row in rows) == ["a.png", "b.png", "c.png"]
    assert all(row["error"] is None for row in rows)


def test_parts_of_other_options_are_refused(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.parquet"
    embed(folder, file, tiny_checkpoint)
    assert embed(folder, file, tiny_checkpoint).exit_code == 1  # the file exists
    parts = file.with_name("features.parquet.parts")
    parts.mkdir()
    file.rename(parts / "00000001.parquet")
    ended = embed(folder, file, tiny_checkpoint, "--pooling", "avg")
    assert ended.exit_code == 1
    assert parts.exists()
    assert embed(folder, tmp_path / "other.parquet", tiny_checkpoint, "--pooling", "map").exit_code == 1

"""The command, run as a user does."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from client.tests.conftest import KEY
from client.tests.scripted_server import OK, answering, as_json
from tests.support.models import png
from tests.support.server import Server

COMMAND = Path(sys.executable).with_name("vit-serve-client")


def run(*arguments: object, stderr: int = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=120, check=False, env=environment)


def test_folder_is_a_line_of_json_each(service: Server, folder: Path) -> None:
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(png(seed))
    ended = run(folder, "--jsonl", "--top-k", 2, VIT_SERVE_URL=service.url, VIT_SERVE_API_KEY=KEY)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(row["path"] for row in rows) == [str(folder / f"{seed}.png") for seed in range(5)]
    assert all(len(row["predictions"]) == 2 for row in rows)
    assert rows[0]["predictions"][0].keys() == {"label", "class_index", "probability", "logit"}


def test_failed_image_sets_the_exit_status(service: Server, folder: Path) -> None:
    (folder / "good.png").write_bytes(png(1))
    (folder / "bad.png").write_bytes(b"no image")
    ended = run(folder, "--jsonl", "--url", service.url, "--api-key", KEY, "--concurrency", 1)
    assert (ended.returncode, ended.stderr) == (1, "")
    bad, good = map(json.loads, ended.stdout.splitlines())
    assert (bad["path"], bad["error"]["code"]) == (str(folder / "bad.png"), "unsupported_image_format")
    assert "predictions" in good


def test_text_is_shown_without_its_controls(folder: Path) -> None:
    (folder / "a\x1b[2J.png").write_bytes(b"image")
    with answering(OK) as server:
        ended = run(folder, "--url", server.url)
    assert ended.stdout == f"{folder}/a\\x1b[2J.png\tcat\t0.9000\n"


def test_values_without_activation_are_shown(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"image")
    value = {"label": "age", "class_index": 0, "probability": None, "logit": 41.25}
    with answering(as_json({"model": "ages", "activation": "none", "predictions": [value]})) as server:
        ended = run(folder, "--url", server.url)
    assert ended.stdout == f"{folder}/a.png\tage\t41.25\n"


def test_progress_is_for_terminals(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"image")
    ours, theirs = pty.openpty()
    try:
        with answering(OK) as server:
            ended = run(folder, "--jsonl", "--url", server.url, stderr=theirs)
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "1 images, 0 failed" in shown
    assert len(ended.stdout.splitlines()) == 1


def test_mistakes_are_explained_in_a_sentence(folder: Path) -> None:
    missing = run(folder / "missing", "--jsonl")
    assert (missing.returncode, missing.stderr) == (1, f"vit-serve-client: {folder / 'missing'} is not a folder\n")
    empty = run(folder, "--jsonl")
    assert (empty.returncode, empty.stderr) == (1, f"vit-serve-client: {folder} has no images\n")
    url = run(folder, "--url", "vit.example")
    assert (url.returncode, "must begin with http://" in url.stderr) == (1, True)
    for option in (("--top-k", 0), ("--concurrency", -1), ("--timeout", "nan")):
        assert run(folder, *option).returncode == 2


def test_missing_service_is_reported(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"image")
    ended = run(folder, "--jsonl", "--url", "http://127.0.0.1:1", "--timeout", 0.3)
    assert ended.returncode == 1
    assert "failed" in json.loads(ended.stdout)["error"]["detail"]


def test_reader_may_leave(folder: Path) -> None:
    for index in range(2000):
        (folder / f"{index}.png").touch()
    with answering(OK) as server:
        command = [str(COMMAND), str(folder), "--jsonl", "--url", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(60) == 1
    assert len(server.received) < 2000

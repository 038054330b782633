"""The test of the image, without Docker: what it counts, and how it fails."""

import itertools
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.containers import CommandFailed, Project, run
from benchmarks.image_test import Clients, main
from tests.support.fake_service import Received, Reply, fake_service


def test_clients_count_what_is_lost() -> None:
    numbers = itertools.count()

    def answer(received: Received) -> Reply:
        return Reply(503 if next(numbers) in (20, 30, 40) else 200)

    with fake_service(answer) as service, Clients(urlsplit(service.url).port or 0, [b"image"]) as clients:
        clients.more(100)
    assert clients.lost == {"503": 3}
    assert clients.answered >= 100


def test_clients_count_cut_connections() -> None:
    numbers = itertools.count()

    def answer(received: Received) -> Reply:
        return Reply(raw=b"") if next(numbers) == 20 else Reply()

    with fake_service(answer) as service, Clients(urlsplit(service.url).port or 0, [b"image"]) as clients:
        clients.more(100)
    assert clients.lost.total() == 1
    assert not next(iter(clients.lost)).isdecimal()


def test_failed_command_tells_its_output() -> None:
    with pytest.raises(CommandFailed, match=r"exit status 3\nwhy"):
        run(["sh", "-c", "echo why; exit 3"])


def test_missing_compose_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMPOSE", str(tmp_path / "compose"))
    monkeypatch.setattr("sys.argv", ["image_test", "--output", str(tmp_path / "out.json")])
    assert main() == 1
    assert "MISSED" in capsys.readouterr().out


def test_project_passes_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "compose").write_text('#!/bin/sh\necho "$@" $COMPOSE_PROJECT_NAME $VIT_PORT $VIT_LOG_LEVEL\n')
    (tmp_path / "compose").chmod(0o755)
    project = Project("mine", "a.yml", {"VIT_LOG_LEVEL": "warning"}, 1234, str(tmp_path / "compose"))
    assert project.compose("ps").split() == ["--project-directory", ".", "-f", "a.yml", "ps", "mine", "1234", "warning"]

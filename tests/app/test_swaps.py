"""Versions of a model swapped under load, on a real server: no request fails, and memory returns."""

import signal
import threading
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.support.models import TINY_DINOV2, png
from tests.support.server import Server, running_server
from tests.support.versions import write_version

_CLIENTS = 4
_SWAPS = 8
_LARGE = replace(TINY_DINOV2, embed_dim=512, mlp_dim=2048, depth=6)
"""76 MB of weights: many times what else a process takes or frees meanwhile."""

_LARGE_BYTES = 70e6
_ADMIN = {"X-API-Key": "an admin's own key"}


@dataclass
class Load:
    """Clients that send one image after another, and their answers in order."""

    url: str
    answers: list[list[int]] = field(default_factory=lambda: [[] for _ in range(_CLIENTS)])
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask, args=(answers,)) for answers in self.answers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, answers: list[int]) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stop.is_set():
                response = client.post(self.url, content=png(0))
                if response.status_code == 200:
                    answers.append(response.json()["predictions"][0]["class_index"])
                else:
                    self.failures.append(response.text)


def resident_bytes(server: Server) -> int:
    line = next(line for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) * 1024


def swap(server: Server, model: str) -> None:
    response = httpx.post(f"{server.url}/v2/repository/models/{model}/load", headers=_ADMIN, timeout=120)
    assert response.status_code == 200, response.text


def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    directory = write_version(tmp_path / "m", 0, _LARGE)
    with running_server(models=f"m={directory}", engine="torch", admin_key=_ADMIN["X-API-Key"], explain=False) as server:
        with Load(f"{server.url}/predict?model=m") as load:
            sizes = []
            for number in range(1, _SWAPS + 1):
                write_version(directory, number % 10, _LARGE)
                swap(server, "m")
                sizes.append(resident_bytes(server))
                seen = [len(answers) for answers in load.answers]
                while any(len(answers) < count + 2 for answers, count in zip(load.answers, seen, strict=True)):
                    load.stop.wait(0.01)  # each client sees each version
        assert not load.failures
        for answers in load.answers:
            versions = [answers[0]] + [now for before, now in pairwise(answers) if now != before]
            assert versions == [number % 10 for number in range(_SWAPS + 1)]
        assert sizes[-1] - sizes[2] < 2 * _LARGE_BYTES
        server.stop()
        assert server.wait() == 0


def test_hang_up_reads_the_models_again(tmp_path: Path) -> None:
    first, second = write_version(tmp_path / "first", 1), write_version(tmp_path / "second", 2)
    file = tmp_path / "models.toml"
    file.write_text(f'[models.m]\nmodel = "{first}"')
    with running_server(models_file=file, engine="torch") as server:
        file.write_text(f'[models.m]\nmodel = "{second}"')
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("loaded")
        answer = httpx.post(f"{server.url}/predict", content=png(0)).json()
        assert answer["predictions"][0]["class_index"] == 2


@pytest.mark.parametrize("fault", ["[models", '[models.m]\nmodel = "/nowhere"'])
def test_start_names_what_is_wrong(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(fault)
    server = Server(models_file=file, engine="torch")
    with pytest.raises(AssertionError, match=r"ended with 1 .*VIT_MODEL"):
        server.wait_for_log("ready")

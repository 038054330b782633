"""The command `reload`, against a real service."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from tests.support.fake_service import Reply, fake_service
from tests.support.models import png
from tests.support.server import Server, running_server
from tests.support.versions import write_version

KEY = "an admin's own key"


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    return [write_version(tmp_path / name, index) for index, name in enumerate("ab")]


@pytest.fixture
def server(directories: list[Path]) -> Iterator[Server]:
    models = ",".join(f"{directory.name}={directory}" for directory in directories)
    with running_server(models=models, admin_key=KEY, api_keys="of clients", engine="torch") as server:
        yield server


def run(server_url: str, *arguments: str, key: str = KEY) -> Result:
    return CliRunner().invoke(cli, ["reload", *arguments, "--url", server_url], env={"VIT_ADMIN_KEY": key})


def answers(server: Server) -> list[int]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}) as client:
        responses = [client.post("/predict", params={"model": model}, content=png(0)) for model in "ab"]
    return [response.json()["predictions"][0]["class_index"] for response in responses]


def test_reload_brings_the_new_version(server: Server, directories: list[Path]) -> None:
    for directory in directories:
        write_version(directory, 5)
    assert answers(server) == [0, 1]
    result = run(server.url, "b")
    assert (result.exit_code, result.stdout) == (0, "b: the new version answers\n")
    assert answers(server) == [0, 5]
    assert run(server.url, "--unload-first").exit_code == 0
    assert answers(server) == [5, 5]


def test_refusals_are_one_sentence(server: Server, directories: list[Path]) -> None:
    (directories[1] / "config.json").unlink()
    for arguments, key, why in (
        (["b"], KEY, "b cannot be loaded"),
        (["c"], KEY, "There is no model 'c'"),
        (["b"], "a wrong key of a kind", "Send the admin key"),
        (["b"], "", "VIT_ADMIN_KEY: set it"),
    ):
        result = run(server.url, *arguments, key=key)
        assert (result.exit_code, why in result.stderr) == (1, True), result.stderr
    assert answers(server) == [0, 1]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(404, b'{"error":"There is nothing at this path."}'), "VIT_PROTOCOLS must have v2"),
        (Reply(502, b"<html>"), "status 502"),
    ],
)
def test_other_services_are_named(reply: Reply, why: str) -> None:
    with fake_service(lambda _: reply) as service:
        result = run(service.url, "a")
    assert (result.exit_code, why in result.stderr) == (1, True), result.stderr


def test_service_that_is_not_there() -> None:
    result = run("http://127.0.0.1:1", "a")
    assert (result.exit_code, "cannot be asked" in result.stderr) == (1, True)

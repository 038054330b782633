"""File of models that changes while the service runs."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.app.api.models.several import ADMIN, LOAD, answer, limit, post, registry_of
from tests.app.conftest import OpenClient
from tests.support.versions import write_version


@pytest.fixture
def write(tmp_path: Path, directories: dict[str, Path]) -> Any:
    """Write a file of models: `write(x="a", y="b")` serves checkpoint a as x; `aliases` are of the model named."""

    def write(aliases: dict[str, str] | None = None, default: str = "", **models: str) -> Path:
        lines = [default] + [
            f'[models.{name}]\nmodel = "{directories.get(of, of)}"\naliases = {[*filter(None, [(aliases or {}).get(name)])]}'
            for name, of in models.items()
        ]
        file = tmp_path / "models.toml"
        file.write_text("\n".join(lines))
        return file

    return write


async def test_alias_moves_without_a_gap(open_client: OpenClient, write: Any) -> None:
    async with open_client(model=None, models_file=write({"x": "live"}, x="a")) as client:
        models = registry_of(client)
        write({"z": "live"}, x="a", z="b")
        answers = []
        rereading = asyncio.create_task(models.reread())
        while not rereading.done():
            answers.append(await answer(client, "live"))
        assert set(answers) <= {1, 2}
        assert await answer(client, "live") == 2


async def test_removed_model_cannot_be_loaded(open_client: OpenClient, write: Any) -> None:
    async with open_client(model=None, models_file=write(x="a", y="b"), admin_key=ADMIN["X-API-Key"]) as client:
        write(x="a", z="c")
        assert (await post(client, LOAD, "y")).status_code == 404
        assert [await answer(client, name) for name in ("x", "y", "z")] == [1, 404, 3]
        write(x="a", z="c", y="b")
        assert (await post(client, LOAD, "y")).status_code == 200
        assert [await answer(client, name) for name in ("x", "y", "z")] == [1, 2, 3]
        text = (await client.get("/metrics")).text
        assert 'vit_model_loads_total{model="y",outcome="ok"} 1.0' in text  # of its new series: the old ones are gone


@pytest.mark.parametrize("fault", ['default = ["x"]', "a = " + "[" * 5000])
async def test_file_of_the_wrong_form_can_be_repaired(open_client: OpenClient, write: Any, fault: str) -> None:
    async with open_client(model=None, models_file=write(x="a")) as client:
        models = registry_of(client)
        write(default=fault, x="b")
        await models.reread()
        assert await answer(client) == 1
        write(x="b")
        await models.reread()
        assert await answer(client) == 2


async def test_default_waits_for_its_model(
    open_client: OpenClient, write: Any, directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client(model=None, models_file=write(x="a")) as client:
        models = registry_of(client)
        write(z=str(tmp_path / "later"), x="a")
        await models.reread()
        assert [await answer(client, name) for name in (None, "x", "z")] == [1, 1, 503]
        shutil.copytree(directories["c"], tmp_path / "later")
        monkeypatch.setattr(models.find("z").backoff, "_until", 0.0)
        await models.reread()
        assert await answer(client, "z") == 3


@pytest.mark.usefixtures("measured")
async def test_replaced_model_makes_room(open_client: OpenClient, write: Any) -> None:
    async with open_client(model=None, models_file=write(x="a", y="b")) as client:
        limit(client, max_model_bytes=2500)
        write(x="a", z="c")
        await registry_of(client).reread()
        assert [await answer(client, name) for name in ("x", "y", "z")] == [1, 404, 3]


async def test_list_is_read_again(open_client: OpenClient, directories: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "models.toml"

    def write(**models: str) -> None:
        file.write_text("\n".join(f'[models.{name}]\nmodel = "{directories[of]}"' for name, of in models.items()))

    write(x="a", y="b")
    async with open_client(model=None, models_file=file) as client:
        models = registry_of(client)
        assert [await answer(client, name) for name in (None, "x", "y", "z")] == [1, 1, 2, 404]
        unchanged = models.find("x").version
        write(x="a", y="c", z="b")
        await models.reread()
        assert [await answer(client, name) for name in (None, "x", "y", "z")] == [1, 1, 3, 2]
        assert models.find("x").version is unchanged
        write(z="b", x="a")
        await models.reread()
        assert [await answer(client, name) for name in (None, "x", "y", "z")] == [2, 1, 404, 2]
        file.write_text("[models.x")
        await models.reread()
        assert [await answer(client, name) for name in (None, "x", "y", "z")] == [2, 1, 404, 2]


async def test_changed_file_is_noticed(
    open_client: OpenClient, directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.serving.registry._LOOK_S", 0.01)
    file = tmp_path / "models.toml"
    file.write_text(f'[models.x]\nmodel = "{directories["a"]}"')
    async with open_client(model=None, models_file=file) as client:
        assert await answer(client) == 1
        file.write_text(f'[models.x]\nmodel = "{directories["b"]}"')
        async with asyncio.timeout(30):
            while await answer(client) != 2:  # noqa: ASYNC110 - the file system has no Event
                await asyncio.sleep(0.01)


async def test_load_takes_the_settings_of_the_list(open_client: OpenClient, write: Any, tmp_path: Path) -> None:
    async with open_client(model=None, models_file=write(x="a"), admin_key=ADMIN["X-API-Key"]) as client:
        write(x=str(tmp_path / "later"))
        await registry_of(client).reread()
        assert (await post(client, LOAD, "x")).status_code == 400  # and stays what the list wants
        assert await answer(client, "x") == 1
        write_version(tmp_path / "later", 5)
        for _ in range(2):
            assert (await post(client, LOAD, "x")).status_code == 200
            assert await answer(client, "x") == 5

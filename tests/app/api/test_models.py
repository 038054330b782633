"""Several models in one service: which one answers, and how models are loaded, swapped and unloaded."""

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.state import AppState
from app.engines.memory import Memory
from app.errors import NotReady
from app.serving.model_loader import ModelLoader
from app.serving.registry import Registry
from tests.app.conftest import OpenClient
from tests.support.models import TINY_DINOV2, png
from tests.support.versions import write_version

ADMIN = {"X-API-Key": "an admin's own key"}
LOAD, UNLOAD = "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload"


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints of three models, of two sizes."""
    sizes = {"a": 28, "b": 42, "c": 28}
    return {
        name: write_version(tmp_path / name, index, replace(TINY_DINOV2, image_size=size))
        for index, (name, size) in enumerate(sizes.items(), start=1)
    }


@pytest.fixture
def several(open_client: OpenClient, directories: dict[str, Path]) -> Any:
    """Open a client of a service with these models: `async with several(max_model_bytes=...) as client`."""
    models = ",".join(f"{name}={path}" for name, path in directories.items())

    def several(**options: Any) -> Any:
        return open_client(model=None, models=models, admin_key=ADMIN["X-API-Key"], **options)

    return several


@pytest.fixture
async def client(several: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with several() as client:
        yield client


def registry_of(client: httpx.AsyncClient) -> Registry:
    state: AppState = client.app.state.vit_serve  # type: ignore[attr-defined] # set by `open_client`
    return state.service.models


async def answer(client: httpx.AsyncClient, model: str | None = None, **headers: str) -> int:
    """Return the class that a model answers with, or the status of an error."""
    parameters = {} if model is None else {"model": model}
    response = await client.post("/predict", content=png(0), params=parameters, headers=headers)
    if response.status_code != 200:
        return response.status_code
    found: int = response.json()["predictions"][0]["class_index"]
    return found


async def post(client: httpx.AsyncClient, path: str, model: str, **options: Any) -> httpx.Response:
    return await client.post(path.format(model), headers=ADMIN, **options)


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    return {model["name"]: model["state"] for model in (await client.get("/models")).json()["models"]}


async def test_each_model_answers_by_its_name(client: httpx.AsyncClient) -> None:
    assert [await answer(client, model) for model in (None, "a", "b", "c", "d")] == [1, 1, 2, 3, 404]
    for name, index in (("a", 1), ("b", 2), ("c", 3)):
        described = (await client.get("/model", params={"model": name})).json()
        assert (described["name"], described["image_size"]) == (name, 42 if name == "b" else 28)
        embedded = await client.post("/embed", content=png(0), params={"model": name})
        assert embedded.json()["model"] == name
        raw = await client.post(f"/models/{name}", content=png(0))
        assert raw.json()[0]["label"] == f"class {index}"
        predicted = await client.post(f"/predictions/{name}", content=png(0))
        assert next(iter(predicted.json())) == f"class {index}"
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [raw_base64()]}
        inferred = (await client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})).json()
        assert inferred["model_name"] == name
        assert max(range(10), key=inferred["outputs"][0]["data"].__getitem__) == index
        row = (await client.post(f"/v1/models/{name}:predict", json={"instances": [raw_base64()]})).json()["predictions"][0]
        assert max(range(10), key=row["logits"].__getitem__) == index
        vector = await client.post("/v1/embeddings", json={"model": name, "input": raw_base64()})
        assert vector.json()["model"] == name
        batch = await client.post("/predict/batch", params={"model": name}, json={"images": [raw_base64()] * 2})
        assert [each["predictions"][0]["class_index"] for each in batch.json()["results"]] == [index] * 2


def raw_base64() -> str:
    return base64.b64encode(png(0)).decode()


async def test_explanation_is_of_the_named_model(several: Any) -> None:
    async with several(request_timeout_s=180) as client:  # explanations take what nothing else wants
        for name, index in (("a", 1), ("b", 2)):
            explained = await client.post("/explain", content=png(0), params={"model": name})
            assert explained.status_code == 200, explained.text
            assert (explained.json()["model"], explained.json()["class_index"]) == (name, index)
            assert explained.json()["grid"]["rows"] == (42 if name == "b" else 28) // 7


async def test_lists_name_all_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()["models"]
    assert [(each["name"], each["state"], each["default"]) for each in listed] == [
        ("a", "ready", True),
        ("b", "ready", False),
        ("c", "ready", False),
    ]
    assert (await client.get("/health/ready")).json() == {"status": "ready", "models": dict.fromkeys("abc", "ready")}
    assert (await client.get("/v1/models")).json()["models"] == ["a", "b", "c"]
    assert (await client.get("/v2/models")).json()["models"] == [each + end for each in "abc" for end in ("", "-pixels")]
    index = (await client.post("/v2/repository/index")).json()
    assert {(each["name"], each["state"]) for each in index} >= {("a", "READY"), ("c-pixels", "READY")}


async def test_metrics_have_the_name_of_the_model(client: httpx.AsyncClient) -> None:
    await answer(client, "b")
    text = (await client.get("/metrics")).text
    for line in (
        'vit_images_total{model="b",outcome="ok"} 1.0',
        'vit_images_total{model="a",outcome="ok"} 0.0',
        'vit_model_ready{model="c"} 1.0',
        'vit_inflight_images{model="b"} 0.0',
        'vit_model_loads_total{model="a",outcome="ok"} 1.0',
    ):
        assert line in text


async def test_load_needs_the_admin_key(client: httpx.AsyncClient, open_client: OpenClient) -> None:
    for headers in ({}, {"X-API-Key": "another"}):
        for path in (LOAD, UNLOAD):
            assert (await client.post(path.format("a"), headers=headers)).status_code == 401
    assert await answer(client, "a") == 1
    async with open_client() as without:
        refused = await without.post(LOAD.format("tiny-dinov2"), headers=ADMIN)
        assert (refused.status_code, "VIT_ADMIN_KEY" in refused.json()["error"]) == (501, True)


async def test_admin_key_opens_all_routes(several: Any) -> None:
    async with several(api_keys="of a client") as client:
        assert await answer(client, "a") == 401
        assert await answer(client, "a", **ADMIN) == 1
        refused = await client.post(LOAD.format("a"), headers={"X-API-Key": "of a client"})
        assert refused.status_code == 401


async def test_loaded_version_takes_over(client: httpx.AsyncClient, directories: dict[str, Path]) -> None:
    write_version(directories["b"], 7, replace(TINY_DINOV2, image_size=56))
    assert await answer(client, "b") == 2
    assert (await post(client, LOAD, "b", json={})).status_code == 200
    assert [await answer(client, model) for model in "abc"] == [1, 7, 3]
    assert (await client.get("/model", params={"model": "b"})).json()["image_size"] == 56


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
async def test_bad_version_leaves_the_old_one(client: httpx.AsyncClient, directories: dict[str, Path], damage: str) -> None:
    (directories["b"] / damage).write_text("broken")
    failed = await post(client, LOAD, "b")
    assert (failed.status_code, "b cannot be loaded: VIT_MODEL" in failed.json()["error"]) == (400, True)
    assert await answer(client, "b") == 2
    (listed,) = [each for each in (await client.get("/models")).json()["models"] if each["name"] == "b"]
    assert (listed["state"], damage in listed["reason"]) == ("ready", True)
    assert 'vit_model_loads_total{model="b",outcome="failed"} 1.0' in (await client.get("/metrics")).text
    write_version(directories["b"], 5)
    assert (await post(client, LOAD, "b")).status_code == 200
    assert await answer(client, "b") == 5


async def test_unloaded_model_is_not_ready(client: httpx.AsyncClient) -> None:
    assert (await post(client, UNLOAD, "b")).status_code == 200
    refused = await client.post("/predict", content=png(0), params={"model": "b"})
    assert (refused.status_code, refused.json()["code"], int(refused.headers["retry-after"]) > 0) == (503, "not_ready", True)
    assert await states(client) == {"a": "ready", "b": "unloaded", "c": "ready"}
    assert (await client.get("/health/ready")).status_code == 200
    assert (await client.get("/v2/models/b/ready")).status_code == 503
    assert 'vit_model_ready{model="b"} 0.0' in (await client.get("/metrics")).text
    assert await answer(client, "c") == 3
    assert (await post(client, LOAD, "b")).status_code == 200
    assert await answer(client, "b") == 2


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"json": {"parameters": {"config": "{}"}}}, 501),
        ({"json": {"parameters": {"unload_first": "maybe"}}}, 400),
        ({"json": []}, 400),
        ({"content": b"{"}, 400),
        ({"params": {"unload_first": "3"}}, 400),
        ({"json": {"parameters": {"unload_first": True}}}, 200),
        ({"params": {"unload_first": "true"}}, 200),
        ({}, 200),
    ],
)
async def test_parameters_of_a_load(client: httpx.AsyncClient, options: dict[str, Any], status: int) -> None:
    response = await post(client, LOAD, "a", **options)
    assert response.status_code == status, response.text
    assert await answer(client, "a") == 1
    assert (await post(client, LOAD, "none")).status_code == 404


def limit(client: httpx.AsyncClient, **settings: Any) -> None:
    """Have each loaded model count as 1000 bytes, and set limits that are measured against these."""
    for model in registry_of(client).models:
        if model.version is not None:
            model.version.bytes = 1000
    loader = registry_of(client)._loader
    loader._settings = loader._settings.model_copy(update=settings)
    loader._expected_bytes = lambda parameters: 1000  # type: ignore[method-assign]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each load measure 1000 bytes."""
    monkeypatch.setattr(Memory, "growth", lambda *_: 1000)


@pytest.mark.usefixtures("measured")
async def test_bound_on_memory_refuses_a_second_version(client: httpx.AsyncClient) -> None:
    limit(client, max_model_bytes=3500)
    refused = await post(client, LOAD, "b")
    assert (refused.status_code, "VIT_MAX_MODEL_BYTES" in refused.json()["error"]) == (507, True)
    assert [await answer(client, model) for model in "abc"] == [1, 2, 3]
    assert (await post(client, LOAD, "b", params={"unload_first": "true"})).status_code == 200
    assert [await answer(client, model) for model in "abc"] == [1, 2, 3]


@pytest.mark.usefixtures("measured")
async def test_least_used_model_is_unloaded(several: Any) -> None:
    async with several(unload_unused=True) as client:
        limit(client, max_model_bytes=3500)
        for name in ("c", "a", "b"):  # c was used least recently
            await answer(client, name)
        assert (await post(client, LOAD, "b")).status_code == 200
        assert await states(client) == {"a": "ready", "b": "ready", "c": "unloaded"}
        assert [await answer(client, model) for model in "abc"] == [1, 2, 503]


@pytest.mark.usefixtures("measured")
async def test_larger_than_estimated_makes_room_too(several: Any) -> None:
    async with several(unload_unused=True) as client:
        limit(client, max_model_bytes=3500)
        registry_of(client)._loader._expected_bytes = lambda parameters: 1  # type: ignore[method-assign]
        for name in ("a", "c", "b"):
            await answer(client, name)
        assert (await post(client, LOAD, "b")).status_code == 200
        assert await states(client) == {"a": "unloaded", "b": "ready", "c": "ready"}


@pytest.mark.usefixtures("measured")
async def test_what_never_fits_unloads_nothing(several: Any) -> None:
    async with several(unload_unused=True) as client:
        limit(client, max_model_bytes=3500)
        registry_of(client)._loader._expected_bytes = lambda parameters: 3000  # type: ignore[method-assign]
        assert (await post(client, LOAD, "b")).status_code == 507
        assert await states(client) == dict.fromkeys("abc", "ready")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("unload_unused", [True, False])
async def test_start_takes_what_there_is_room_for(several: Any, unload_unused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelLoader, "_expected_bytes", lambda *_: 1000)
    async with several(unload_unused=unload_unused, max_model_bytes=2500) as client:
        state = client.app.state.vit_serve
        assert (state.service.why_not_ready is None) == unload_unused
        if unload_unused:
            assert await states(client) == {"a": "ready", "b": "ready", "c": "unloaded"}
            assert [await answer(client, model) for model in (None, "b", "c")] == [1, 2, 503]


async def test_failed_load_is_not_tried_at_once(several: Any, directories: dict[str, Path]) -> None:
    async with several(load_on_request=True) as client:
        await post(client, UNLOAD, "b")
        shutil.rmtree(directories["b"])
        for _ in range(12):
            assert await answer(client, "b") == 503
        text = (await client.get("/metrics")).text
    (failed,) = (line.split()[1] for line in text.splitlines() if 'vit_model_loads_total{model="b",outcome="failed"}' in line)
    assert float(failed) < 12


async def test_waiting_request_is_refused_at_the_end(several: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with several(load_on_request=True) as client:
        models = registry_of(client)
        await post(client, UNLOAD, "b")
        begun = asyncio.Event()

        async def endless(*_: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(models, "load", endless)
        waiting = asyncio.create_task(client.post("/predict", content=png(0), params={"model": "b"}))
        await begun.wait()
        await models.close()
        refused = await waiting
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")


async def test_requests_share_one_load(several: Any) -> None:
    async with several(load_on_request=True) as client:
        assert (await post(client, UNLOAD, "b")).status_code == 200
        assert await asyncio.gather(*(answer(client, "b") for _ in range(5))) == [2] * 5
        assert 'vit_model_loads_total{model="b",outcome="ok"} 2.0' in (await client.get("/metrics")).text


async def test_request_for_a_broken_model_is_503(several: Any, directories: dict[str, Path]) -> None:
    async with several(load_on_request=True) as client:
        await post(client, UNLOAD, "b")
        shutil.rmtree(directories["b"])
        refused = await client.post("/predict", content=png(0), params={"model": "b"})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "b cannot be loaded" in refused.json()["detail"]
        assert await answer(client, "a") == 1


async def test_request_does_not_outwait_its_deadline(several: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with several(load_on_request=True) as client:
        models = registry_of(client)
        await post(client, UNLOAD, "b")
        held = asyncio.Event()

        async def slow(*_: Any) -> None:
            await held.wait()

        monkeypatch.setattr(models, "load", slow)
        assert await answer(client, "b", **{"X-Request-Timeout-Ms": "20"}) == 503
        with pytest.raises(NotReady):
            models.find("b").ready_version()
        held.set()


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

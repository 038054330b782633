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
from app.errors import NotReady
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
    assert (await post(client, LOAD, "none", **options)).status_code == 404


async def test_bound_on_memory_refuses_a_second_version(several: Any) -> None:
    async with several() as client:
        for model in registry_of(client).models:
            assert model.version is not None
            model.version.bytes = 1000  # as if measured
        loader = registry_of(client)._loader
        loader._settings = loader._settings.model_copy(update={"max_model_bytes": 3500})
        refused = await post(client, LOAD, "b")
        assert (refused.status_code, "VIT_MAX_MODEL_BYTES" in refused.json()["error"]) == (507, True)
        assert [await answer(client, model) for model in "abc"] == [1, 2, 3]


async def test_least_used_model_is_unloaded(several: Any) -> None:
    async with several(unload_unused=True) as client:
        models = registry_of(client).models
        for model in models:
            assert model.version is not None
            model.version.bytes = 1000
        loader = registry_of(client)._loader
        loader._settings = loader._settings.model_copy(update={"max_model_bytes": 3500})
        for name in ("c", "a", "b"):  # c was used least recently
            await answer(client, name)
        version = models[1].version
        assert version is not None
        await loader._make_room(models[1], version.classifier.model.parameters)
        assert await states(client) == {"a": "ready", "b": "ready", "c": "unloaded"}


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

"""Models loaded, swapped and unloaded: by whom, when, and what a failure leaves."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.auth.access import Access
from app.errors import NotReady, StartError
from app.metrics import Metrics
from app.serving.model_loader import ModelLoader
from app.settings import read_settings
from tests.app.api.models.several import ADMIN, LOAD, UNLOAD, answer, post, registry_of, states
from tests.app.conftest import OpenClient
from tests.support.models import TINY_DINOV2, png
from tests.support.versions import write_version


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


@pytest.mark.parametrize(
    "key", ["fifteen-letters", "a key of sixteen and a line\n", " a key that begins with a blank", "ein Schlüssel, lang"]
)
def test_admin_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(StartError, match="VIT_ADMIN_KEY"):
        read_settings(admin_key=key)


def test_admin_key_of_a_client_is_refused() -> None:
    settings = read_settings(admin_key=ADMIN["X-API-Key"], api_keys=f"other,{ADMIN['X-API-Key']}")
    with pytest.raises(StartError, match="VIT_ADMIN_KEY: it is one of VIT_API_KEYS"):
        Access(settings, Metrics())


async def test_guesses_of_the_admin_key_are_limited(several: Any) -> None:
    async with several(rate_limit_per_address="2/hour") as client:
        statuses = [(await client.post(LOAD.format("a"), headers={"X-API-Key": "guess"})).status_code for _ in range(3)]
    assert statuses == [401, 401, 429]


async def test_input_beyond_the_workers_memory_is_refused(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.loading.MAX_OUTPUT_BYTES", 3 * 28 * 28)
    assert (await post(client, LOAD, "a")).status_code == 200
    refused = await post(client, LOAD, "b")
    assert (refused.status_code, "42 x 42 pixels is too large" in refused.json()["error"]) == (400, True)


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

        async def endless(*_: Any, **__: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(ModelLoader, "load", endless)
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

        async def slow(*_: Any, **__: Any) -> None:
            await held.wait()

        monkeypatch.setattr(ModelLoader, "load", slow)
        assert await answer(client, "b", **{"X-Request-Timeout-Ms": "20"}) == 503
        with pytest.raises(NotReady):
            models.find("b").ready_version()
        held.set()

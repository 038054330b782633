"""Bound on the memory of all models."""

from typing import Any

import httpx
import pytest

from app.serving.model_loader import ModelLoader
from tests.app.api.models.several import LOAD, answer, limit, post, registry_of, states


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

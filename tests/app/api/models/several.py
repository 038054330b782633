"""Questions to a service with several models."""

from typing import Any

import httpx

from app.api.state import AppState
from app.serving.registry import Registry
from tests.support.models import png

ADMIN = {"X-API-Key": "an admin's own key"}
LOAD, UNLOAD = "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload"


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


def limit(client: httpx.AsyncClient, **settings: Any) -> None:
    """Have each loaded model count as 1000 bytes, and set limits that are measured against these."""
    for model in registry_of(client).models:
        if model.version is not None:
            model.version.bytes = 1000
    loader = registry_of(client)._loader
    loader._settings = loader._settings.model_copy(update=settings)
    loader._expected_bytes = lambda parameters: 1000  # type: ignore[method-assign]

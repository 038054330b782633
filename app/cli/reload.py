"""The command `reload`."""

import os
from typing import Annotated, Any

import typer

from app.cli.output import explained_errors, out
from app.errors import StartError

_TIMEOUT_S = 3600.0
"""Seconds that a load may take; the service says at once when it cannot."""


def reload(
    model: Annotated[str | None, typer.Argument(help="Name of the model. Default: all models.")] = None,
    url: Annotated[str, typer.Option("--url", help="URL of the service.")] = "http://127.0.0.1:8000",
    unload_first: Annotated[
        bool, typer.Option("--unload-first", help="Free the old version first, where there is no memory for both.")
    ] = False,
) -> None:
    """Have a running service load models again, beside the versions that answer. VIT_ADMIN_KEY has the key."""
    import httpx  # importing it takes longer than the rest of the command

    with explained_errors():
        headers = {"X-API-Key": _admin_key()}
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            names = [model] if model is not None else _names(client)
            for name in names:
                _ask(client, "POST", f"/v2/repository/models/{name}/load", params={"unload_first": str(unload_first).lower()})
                out.print(f"{name}: the new version answers")


def _admin_key() -> str:
    if key := os.environ.get("VIT_ADMIN_KEY"):
        return key
    raise StartError("VIT_ADMIN_KEY: set it to the admin key of the service")


def _names(client: Any) -> list[str]:
    return [model["name"] for model in _ask(client, "GET", "/models").json()["models"]]


def _ask(client: Any, method: str, path: str, **options: Any) -> Any:
    """Send a request.

    Raises:
        StartError: the service cannot be reached, or refuses.
    """
    import httpx

    try:
        response = client.request(method, path, **options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StartError(f"{client.base_url} cannot be asked: {error or type(error).__name__}") from None
    if response.status_code == httpx.codes.NOT_FOUND and not _is_refusal(response):
        raise StartError(f"{client.base_url} has no {path}: VIT_PROTOCOLS must have v2")
    if response.is_error:
        raise StartError(f"{client.base_url} refuses: {_reason(response)}")
    return response


def _is_refusal(response: Any) -> bool:
    return "There is no model" in _reason(response)


def _reason(response: Any) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"

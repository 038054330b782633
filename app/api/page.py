"""GET / for browsers: a page to try the model on images; its files lie in `app/page`, and ask no other host for anything."""

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Match, Route
from starlette.types import Scope

from app.api.accept import names

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = frozenset(file.name for file in _FOLDER.iterdir() if file.suffix in _TYPES)
_INDEX = "index.html"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class PageRoute(Route):
    """GET / of browsers, which name `text/html`; other clients get the answer of the protocols there."""

    def __init__(self) -> None:
        super().__init__("/", _index, methods=["GET"])

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        accepted = b",".join(value for name, value in scope.get("headers", ()) if name == b"accept").decode("latin-1")
        return (match, child) if match == Match.FULL and names(accepted, "text/html") else (Match.NONE, {})


async def _index(_: object) -> FileResponse:
    return _file(_INDEX)


@router.get("/page/{name}")
async def file_of_page(name: str) -> FileResponse:
    if name not in _FILES:
        raise HTTPException(404)
    return _file(name)


def _file(name: str) -> FileResponse:
    path = _FOLDER / name
    return FileResponse(path, headers={**_HEADERS, "Vary": "Accept"}, media_type=_TYPES[path.suffix])

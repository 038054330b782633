"""GET /docs: the OpenAPI description as a page, served from this host alone."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

router = APIRouter(include_in_schema=False)

_FILES = {
    name: Path(str(files("fastapi_swagger.resources") / name))
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
}
"""Files of Swagger UI as published; no code of the package is used."""


@router.get("/docs")
async def docs() -> HTMLResponse:
    # relative URLs also work behind a proxy that adds a prefix
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="vit-serve",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )


@router.get("/docs/{name}")
async def file_of_docs(name: str) -> FileResponse:
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FILES[name])

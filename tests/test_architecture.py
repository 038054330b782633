"""Imports go one way, and each room knows only what it may."""

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.routing import APIRoute

from app.api import docs, health, metrics, model, predict

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("model/**/*.py")])


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def reaches(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) for module in modules if name == module or name.startswith(f"{module}.")}


@pytest.mark.parametrize("path", sorted(ROOT.glob("model/**/*.py")), ids=lambda path: path.name)
def test_the_model_knows_nothing_of_the_service(path: Path) -> None:
    assert not reaches(path, "app", "fastapi", "starlette", "httpx")


@pytest.mark.parametrize(
    ("file", "unknown"),
    [
        ("batching.py", ("torch", "fastapi", "starlette", "model", "PIL", "numpy")),
        ("decoding/limits.py", ("app", "model", "torch", "PIL", "numpy")),
        ("decoding/protocol.py", ("torch", "PIL", "numpy", "pickle", "fastapi", "starlette", "app.images")),
        ("decoding/processes.py", ("torch", "PIL", "pickle", "fastapi", "starlette", "app.batching", "app.settings", "model")),
        ("errors.py", ("fastapi", "starlette", "http", "app", "model")),
        ("headers.py", ("PIL", "numpy", "torch", "fastapi", "starlette", "model", "app.images", "app.jpeg")),
        ("images.py", ("torch", "fastapi", "starlette", "app.batching", "app.runner", "app.engines")),
        ("jpeg.py", ("PIL", "fastapi", "starlette", "app.batching", "app.runner", "app.engines")),
        ("runner.py", ("torch", "openvino", "fastapi", "starlette", "app.batching", "model")),
        ("classifier.py", ("fastapi", "starlette", "app.api", "torch")),
        ("lifecycle.py", ("fastapi", "starlette", "app.api", "torch")),
        ("settings.py", ("fastapi", "starlette", "torch", "model")),
    ],
)
def test_each_room_knows_only_what_it_may(file: str, unknown: tuple[str, ...]) -> None:
    assert not reaches(ROOT / "app" / file, *unknown)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_server_builds_the_app_and_few_meet_torch(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert name == "app/server.py" or not reaches(path, "app.main")
    assert name.startswith(("model/", "app/engines/")) or name == "app/jpeg.py" or not reaches(path, "torch")
    assert name in ("app/engines/openvino.py", "app/engines/int8.py") or not reaches(path, "openvino")


@pytest.mark.parametrize("path", sorted(ROOT.glob("app/engines/*.py")), ids=lambda path: path.name)
def test_engines_know_neither_the_queue_nor_the_wire(path: Path) -> None:
    assert not reaches(path, "fastapi", "starlette", "app.batching", "app.runner", "app.classifier", "app.settings")


@pytest.mark.parametrize("path", sorted(ROOT.glob("app/*.py")), ids=lambda path: path.name)
def test_only_main_knows_the_wire(path: Path) -> None:
    assert path.name == "main.py" or not reaches(path, "app.api")


@pytest.mark.parametrize("api", [predict, model, health, metrics, docs], ids=lambda api: api.__name__)
def test_no_request_changes_threads_to_be_understood(api: ModuleType) -> None:
    calls = []
    for route in api.router.routes:
        assert isinstance(route, APIRoute)
        dependants = [route.dependant]
        while dependants:
            dependant = dependants.pop()
            calls.append(dependant.call)
            dependants += dependant.dependencies
    assert calls
    assert [call for call in calls if not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))] == []

"""Imports go one way, and each folder reaches only what it may, directly or through others."""

import ast
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.api import docs, metrics
from app.api.protocols.select import wires_of
from app.settings import read_settings

ROOT = Path(__file__).parent.parent
WIRE = ("app.api", "app.auth", "app.http", "fastapi", "starlette")

OUT_OF_REACH = {
    "model": ("app", "httpx", *WIRE),
    "app/converting": ("app.tracing", "app.cli", "app.decoding", "app.main", "app.serving", "app.settings", *WIRE),
    "app/converting/process.py": ("torch",),
    "app/decoding": ("app.tracing", "app.cli", "app.engines", "app.main", "app.serving", *WIRE),
    "app/decoding/headers": ("PIL", "app.decoding.pool", "app.settings", "model", "torch"),
    "app/decoding/image.py": ("app.decoding.pool", "app.settings"),
    "app/decoding/limits.py": ("PIL", "app.settings", "model", "torch"),
    "app/decoding/pool/messages.py": ("PIL", "model", "pickle", "torch"),
    "app/decoding/pool/processes.py": ("PIL", "app.decoding.pool.zygote_main", "app.settings", "model", "torch"),
    "app/decoding/pool/threads.py": ("PIL", "app.settings", "model", "torch"),
    "app/decoding/pool/zygote_main.py": ("app.settings", "model", "torch"),
    "app/decoding/pool/sandbox.py": ("model", "torch"),
    "app/engines": ("app.tracing", "app.cli", "app.decoding.pool", "app.main", "app.serving", "app.settings", *WIRE),
    "app/explaining": ("app.cli", "app.decoding.pool", "app.main", "app.serving.loading", "app.settings", *WIRE),
    "app/explaining/explainer.py": ("torch",),
    "app/explaining/process_main.py": ("app.serving",),
    "app/serving": ("app.tracing.spans", "opentelemetry", "app.cli", "app.main", "app.server", *WIRE),
    "app/serving/admission.py": ("app.metrics", "app.settings", "asyncio", "numpy"),
    "app/serving/batching.py": ("app.metrics", "app.serving.admission", "app.settings", "model", "numpy", "torch"),
    "app/serving/classifier.py": ("app.decoding.pool", "app.serving.loading", "app.settings", "torch"),
    "app/serving/registry.py": ("app.decoding.pool", "app.serving.loading", "torch"),
    "app/serving/service.py": ("app.decoding.pool", "app.serving.loading", "torch"),
    "app/http": (
        "app.api",
        "app.auth",
        "app.decoding",
        "app.engines",
        "app.serving",
        "app.settings",
        "fastapi",
        "model",
        "torch",
    ),
    "app/auth": (
        "app.api",
        "app.cli",
        "app.decoding",
        "app.engines",
        "app.main",
        "app.serving",
        "fastapi",
        "torch",
    ),
    "app/bench": (
        "app.cli",
        "app.decoding",
        "app.engines",
        "app.main",
        "app.metrics",
        "app.serving",
        "app.settings",
        "httpx",
        "model",
        "torch",
        *WIRE,
    ),
    "app/api/protocols": ("app.cli", "app.decoding.pool", "app.main", "app.server", "torch"),
    "app/api/payloads": ("app.api.protocols", "app.auth", "app.decoding", "app.engines", "model", "numpy", "torch"),
    "app/process": ("app.settings", "httpx", "model", "torch", *WIRE),
    "app/api": ("app.cli", "app.main", "app.server"),
    "app/errors.py": ("app.settings", "http", "model", *WIRE),
    "app/metrics.py": ("app.settings", "model", "torch", *WIRE),
    "app/ray.py": ("app.cli", "app.bench"),
    "app/settings.py": ("torch", *WIRE),
    "app/tracing": (
        "app.cli",
        "app.decoding",
        "app.engines",
        "app.main",
        "app.serving",
        "app.settings",
        "model",
        "torch",
        *WIRE,
    ),
}


def file_of(module: str) -> Path:
    """Return the file of a module, which need not exist."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_of(node: ast.AST) -> set[str]:
    """Return the full names that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


@cache
def imported(module: str) -> frozenset[str]:
    """Return the full names of all that a module of ours imports, wherever in the file; of other modules nothing is known."""
    file = file_of(module)
    if not file.is_file():
        return frozenset()
    return frozenset(name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for name in names_of(node))


@cache
def at_once(module: str) -> frozenset[str]:
    """Return what is imported while a module of ours is: without what its functions import, with the packages around it."""
    file = file_of(module)
    if not file.is_file():
        return frozenset()
    waiting: list[ast.AST] = list(ast.parse(file.read_text(encoding="utf-8")).body)
    names = {module.rpartition(".")[0]} - {""}
    while waiting:
        match waiting.pop():
            case ast.Import() | ast.ImportFrom() as node:
                names |= names_of(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) as node:
                waiting += node.orelse
            case node:
                waiting += ast.iter_child_nodes(node)
    return frozenset(names)


def reached(module: str, imported: Callable[[str], frozenset[str]] = imported) -> dict[str, str]:
    """Return every name that a module imports or that is imported on its behalf, each with the module that imports it."""
    importers: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        for name in imported(importer) - importers.keys():
            importers[name] = importer
            waiting.append(name)
    return importers


def modules(place: str) -> list[str]:
    """Return the names of the modules in a folder, or of the one in a file."""
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).glob("**/*.py"))
    assert files
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


@pytest.mark.parametrize("place", OUT_OF_REACH)
def test_imports_stay_within_reach(place: str) -> None:
    for module in modules(place):
        strays = {
            name: importer
            for name, importer in reached(module).items()
            if any(name == other or name.startswith(f"{other}.") for other in OUT_OF_REACH[place])
        }
        assert not strays, f"{module} reaches {strays}"


def test_only_the_command_imports_bench() -> None:
    others = [name for name in modules("app") if not name.startswith("app.bench")]
    assert [name for name in others if any(other.startswith("app.bench") for other in imported(name))] == ["app.cli.bench"]


def test_nothing_imports_ray_but_its_module() -> None:
    importers = {name for name in modules("app") if any(other.split(".")[0] == "ray" for other in imported(name))}
    assert importers == {"app.ray"}
    assert not any("app.ray" in imported(name) for name in modules("app"))


def test_ray_loads_torch_on_replicas_alone() -> None:
    tree = ast.parse((ROOT / "app" / "ray.py").read_text(encoding="utf-8"))
    first = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "app.settings" in first
    assert not any(name == "torch" or "torch" in reached(name) for name in first if name is not None)


def test_only_spans_import_opentelemetry() -> None:
    direct = {name for name in modules("app") if any(other.split(".")[0] == "opentelemetry" for other in imported(name))}
    assert direct == {"app.tracing.spans"}
    assert {name for name in modules("app") if "app.tracing.spans" in imported(name)} == {
        "app.api.state",
        "app.api.traced_requests",
        "app.tracing.start",
    }


def test_only_engines_import_torch_and_openvino() -> None:
    direct = {name for name in modules("app") if "torch" in imported(name)}
    assert all(name.startswith("app.engines.") or name == "app.explaining.model_copy" for name in direct)
    assert {name for name in modules("app") if "openvino" in imported(name)} == {
        f"app.engines.{name}" for name in ("conversion", "int8", "openvino")
    }


@pytest.mark.parametrize(
    "place", ["app/main.py", "app/server.py", "app/cli", "app/api", "app/converting", "app/decoding", "app/serving"]
)
def test_service_starts_without_torch(place: str) -> None:
    for module in modules(place):
        importers = reached(module, at_once)
        assert "torch" not in importers, f"{module} imports torch by {importers['torch']}"


def test_what_computes_imports_torch() -> None:
    assert "torch" in reached("app.engines.conversion", at_once)
    assert "torch" not in reached("app.engines.openvino")


ROUTERS = [
    router
    for wire in wires_of(read_settings(vertex_predict_route="/v", vertex_health_route="/h")).wires
    for router in wire.routers
]


@pytest.mark.parametrize("router", [*ROUTERS, metrics.router, docs.router], ids=lambda router: str(router.routes[0].path))
def test_routes_use_no_threads(router: APIRouter) -> None:
    calls = []
    for route in router.routes:
        assert isinstance(route, APIRoute)
        dependants = [route.dependant]
        while dependants:
            dependant = dependants.pop()
            calls.append(dependant.call)
            dependants += dependant.dependencies
    assert calls
    assert [call for call in calls if not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))] == []

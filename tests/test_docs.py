"""Facts in the documents."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic_core import PydanticUndefined
from typer.main import get_group

from app.cli import cli
from app.cli.bench import KEY_OF_CLIENTS
from app.settings import BUNDLED_MODEL, Settings
from tests.support.models import ROOT
from tests.support.server import Server, running_server

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


MADE = {
    "cache_dir": "`~/.cache/vit-serve`",
    "max_batch_size": "by the engine",
    "port": "`8000`",
    "protocols": "all",
    "vertex_predict_route": "`AIP_PREDICT_ROUTE`",
    "vertex_health_route": "`AIP_HEALTH_ROUTE`",
    "max_request_pixels": "14,000,000 for each second of `VIT_REQUEST_TIMEOUT_S`, at most 8 times `VIT_MAX_IMAGE_PIXELS`",
    "max_inflight_bytes": "`268435456`",
    "max_request_bytes": "`67108864`",
}
"""Defaults computed at the start, or too long for the table; all others of the kind are numbers of cores."""


def written(default: Any) -> str:
    """Return a default as the page writes it."""
    if default is PydanticUndefined:
        return "CPU cores"
    if default == str(BUNDLED_MODEL):
        return "the bundled weights"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, frozenset | tuple):
        return f"`{','.join(sorted(default))}`" if default else "none"
    if default is None:
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_settings_page_is_complete() -> None:
    page = dict(re.findall(r"^\| `(VIT_\w+)` \| (.+?) \|", SETTINGS, flags=re.MULTILINE))
    defaults = {name: MADE.get(name) or written(field.default) for name, field in Settings.model_fields.items()}
    assert page == {f"VIT_{name.upper()}": default for name, default in defaults.items()}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_settings_in_docs_exist(page: str) -> None:
    named = set(re.findall(r"VIT_[A-Z_]+[A-Z]", (ROOT / page).read_text(encoding="utf-8")))
    assert named
    assert named <= {KEY_OF_CLIENTS, *(f"VIT_{name.upper()}" for name in Settings.model_fields)}


@pytest.mark.parametrize(
    "page", ["README.md", "benchmarks/README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_links_in_docs_exist(page: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_tests_in_reliability_exist() -> None:
    named = set(re.findall(r"`(test_\w+|BatcherMachine)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")))
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert len(named) > 100
    assert named <= set(re.findall(r"(?:def|class) (\w+)", tests))


def test_make_targets_in_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"\bmake ([\w-]+)", page):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_options_of_bench_are_all_there() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    options = {name for option in get_group(cli).commands["bench"].params for name in option.opts if name.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]+", page)) == options


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def test_readme_curl_answer_is_real(server: Server) -> None:
    curl = next(block for block in blocks("bash") if block.startswith("curl"))
    path = re.search(r"-F image=@(\S+)", curl)
    url = re.search(r"http://127\.0\.0\.1:8000(/\S+?)'?\s", curl)
    assert path and url
    image_bytes = (ROOT / path[1]).read_bytes()
    answer = httpx.post(server.url + url[1], files={"image": image_bytes}, timeout=60).json()
    shown = json.loads(blocks("json")[0])
    assert (shown["model"], shown["activation"]) == (answer["model"], answer["activation"])
    for ours, theirs in zip(shown["predictions"], answer["predictions"], strict=True):
        assert (ours["label"], ours["class_index"]) == (theirs["label"], theirs["class_index"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-3)
        assert ours["logit"] == pytest.approx(theirs["logit"], abs=2e-2)


def test_readme_python_client_works(server: Server) -> None:
    code = blocks("python")[0].replace("http://127.0.0.1:8000", server.url)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "cat" in ended.stdout


def test_contributing_lists_every_module() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\s*)(\S+\.py) ", page[page.index("<!-- tree -->") :], flags=re.MULTILINE)
    modules = [path.name for folder in ("app", "model") for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    assert sorted(name for _, name in listed) == sorted(modules)

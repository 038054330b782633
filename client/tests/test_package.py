"""The package as it is installed, and its page."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import entry_points, requires, version

import vit_serve_client
from app.serving.results import ModelDescription
from app.serving.results import Prediction as Served
from client.tests.conftest import KEY
from tests.support.models import ROOT
from tests.support.server import Server
from vit_serve_client import Model, Prediction, VitError
from vit_serve_client.errors import BY_CODE

CLIENT = ROOT / "client"
PAGE = (CLIENT / "README.md").read_text(encoding="utf-8")


def test_version_is_the_services() -> None:
    service = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    client = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert client["version"] == service["version"] == version("vit-serve-client")
    assert client["license"] == service["license"]
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_httpx2_is_the_only_dependency() -> None:
    assert [re.split(r"[<>=~! ]", line)[0] for line in requires("vit-serve-client") or []] == ["httpx2"]
    (script,) = entry_points(group="console_scripts", name="vit-serve-client")
    assert callable(script.load())


def test_nothing_else_is_imported() -> None:
    code = "import sys, json, vit_serve_client.command; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not {"app", "model", "torch", "numpy", "PIL", "httpx", "rich", "pydantic"} & set(json.loads(ended.stdout))


def test_fields_are_the_services() -> None:
    assert [field.name for field in fields(Model)] == [field.name for field in fields(ModelDescription)]
    assert [field.name for field in fields(Prediction)] == [field.name for field in fields(Served)]


def test_page_lists_every_error_and_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE[PAGE.index("## Errors") :], flags=re.MULTILINE))
    exported = {name: getattr(vit_serve_client, name) for name in vit_serve_client.__all__}
    assert rows.keys() == {name for name, kind in exported.items() if isinstance(kind, type) and issubclass(kind, VitError)}
    listed = {code: name for name, row in rows.items() for code in re.findall(r"`(\w+)`", row)}
    assert listed == {code: kind.__name__ for code, kind in BY_CODE.items()}


def test_every_code_is_one_of_the_service() -> None:
    documented = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert BY_CODE.keys() <= set(re.findall(r"`(\w+)`", documented))


def test_example_on_the_page_works(service: Server) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    code = code.replace('"http://127.0.0.1:8000"', f'"{service.url}", "{KEY}"')
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(re.findall(r"^-?\d+\.\d{3} class \d$", ended.stdout, flags=re.MULTILINE)) == 3


def test_links_on_the_page_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert targets
    assert all((CLIENT / target).exists() for target in targets)

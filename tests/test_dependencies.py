"""Pins of all packages, and minimum versions without known vulnerabilities."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.models import ROOT

FLOORS = {
    "h11": "0.16.0",  # CVE-2025-43859: a chunk's terminator is not checked
    "pillow": "13.0.0",  # CVE-2026-96639, CVE-2026-112403: memory of decoders
    "python-multipart": "0.0.30",  # CVE-2026-53537, -53538, -53539: parameters of parts
    "starlette": "1.3.1",  # CVE-2026-48710, -54282, -54283: paths and hosts, fields without end
}
"""First fixed versions of the packages that read a client's input."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(requirement.name): str(requirement.specifier)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for requirement in [Requirement(line)]
}


def needed(requirements: list[str], extras: frozenset[str] = frozenset({""})) -> set[tuple[str, frozenset[str]]]:
    """Return name and extras of each requirement that applies here."""
    parsed = [Requirement(line) for line in requirements]
    return {
        (canonicalize_name(requirement.name), frozenset({"", *requirement.extras}))
        for requirement in parsed
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    }


def pulled_in(requirements: list[str]) -> set[str]:
    """Return all installed packages that these require."""
    todo, seen = needed(requirements), set()
    while todo:
        name, extras = todo.pop()
        seen.add((name, extras))
        try:
            todo |= needed(requires(name) or [], extras) - seen
        except PackageNotFoundError:
            continue
    return {name for name, _ in seen} - {"vit-serve"}


def test_pins_are_exact_and_sorted() -> None:
    assert all(specifier.startswith("==") and "*" not in specifier for specifier in PINS.values())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[2:]
    assert lines == sorted(lines, key=str.lower)


def test_every_dependency_is_pinned() -> None:
    wanted = pulled_in([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    assert {"httpx", "httpcore", "uvloop", "pyarrow", "pytest"} <= wanted  # direct, transitive, of extras
    # torch's GPU builds bring packages of their own choice
    assert {name for name in wanted if not name.startswith(("nvidia-", "cuda-", "triton"))} <= set(PINS)


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_vulnerable_versions_are_excluded(name: str, floor: str) -> None:
    assert Version(PINS[canonicalize_name(name)].removeprefix("==")) >= Version(floor)
    (requirement,) = (Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == name)
    (minimum,) = (specifier.version for specifier in requirement.specifier if specifier.operator == ">=")
    assert Version(minimum) >= Version(floor)


def test_audit_is_strict() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile[makefile.index("\naudit:") :].partition("\n\n")[0]
    assert {"--strict", "constraints.txt"} <= set(recipe.split())


def test_ci_does_not_need_the_audit() -> None:
    assert "audit" not in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

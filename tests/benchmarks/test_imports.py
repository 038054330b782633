"""Every module of the benchmarks finds what it imports, though no test runs most of them."""

import importlib
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__path__[0])
MODULES = sorted(f"benchmarks.{file.stem}" for file in FOLDER.glob("*.py") if file.stem != "__main__")
MODULES += sorted(f"benchmarks.simulation.{file.stem}" for file in FOLDER.glob("simulation/*.py"))


@pytest.mark.parametrize("module", [*MODULES, "benchmarks.__main__"])
def test_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)

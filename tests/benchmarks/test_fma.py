"""Limit of fused multiply-adds: the program runs them all, and what it prints is read."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from app.process.cpu import available_cpus
from benchmarks import fma
from benchmarks.fma import NoFmaError, compiled, flops, parsed
from benchmarks.inside import rate_case

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return compiled(tmp_path_factory.mktemp("fma"))
    except NoFmaError as error:
        pytest.skip(str(error))


def test_operations_over_seconds() -> None:
    assert parsed("15360000 0.002500000\n") == 6.144e9


@pytest.mark.parametrize("line", ["", "15360000", "1 2 3", "many 1", "0 0.1", "10 0"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError):
        parsed(line)


@needs_cc
def test_program_beats_a_matrix_product(program: Path) -> None:
    """The limit is above the rate of BLAS, and not as far above it as a loop that was left out would be."""
    left, right = (np.random.default_rng(seed).random((1024, 1024), dtype=np.float32) for seed in (0, 1))

    def product() -> int:
        np.matmul(left, right)
        return 2 * 1024**3

    rate = rate_case(product, threads=1, slice_s=0.2)
    limit = best = 0.0
    for turn in range(20):  # others may use the cores: the least disturbed of each counts
        limit = max(limit, flops(program, available_cpus()))
        best = max(best, rate())
        if turn >= 2 and limit > best:
            break
    assert 1 < limit / best < 20


@needs_cc
def test_wrong_arguments_are_refused(program: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        flops(program, 0)


def test_no_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoFmaError, match="no C compiler"):
        compiled(tmp_path, ("no-such-compiler",))
    monkeypatch.setenv("PATH", str(tmp_path))
    cases, note = fma.cases(tmp_path)
    assert not cases
    assert "no C compiler (cc)" in note


@needs_cc
def test_unknown_cpu_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoFmaError, match="error"):
        compiled(tmp_path, ("cc", "-march=no-such-cpu"))

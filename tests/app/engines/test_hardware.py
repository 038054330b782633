"""Hardware: the same answers as torch's, without importing it."""

import ctypes
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from app.engines import hardware
from tests.support.models import ROOT


def test_flags_agree_with_torch() -> None:
    told = torch.cpu.get_capabilities()
    assert hardware.has_bfloat16() == bool(told.get("avx512_bf16"))
    assert hardware.has_vnni() == bool(told.get("avx512_vnni") or told.get("avx_vnni"))


def test_flags_are_whole_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "cpuinfo").write_text("vmx flags\t: avx512_bf16\nflags\t\t: fpu avx512_vnni avx_vnni_int8\n")
    assert hardware.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512_vnni", "avx_vnni_int8"}


def test_flags_come_from_torch_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx2": False, "architecture": "x86_64"})
    assert hardware.cpu_flags(tmp_path / "nowhere") == {"avx512_bf16"}


def test_other_architectures_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert hardware.cpu_flags(tmp_path / "of another") == frozenset()


@pytest.mark.parametrize(
    ("build", "driver", "asked"),
    [("2.13.0+cpu", True, False), ("2.13.0", True, True), ("2.13.0", False, False), ("2.13.0+rocm6.4", False, True)],
)
def test_torch_is_asked_for_cuda_if_in_doubt(monkeypatch: pytest.MonkeyPatch, build: str, driver: bool, asked: bool) -> None:
    def load(_: str) -> None:
        if not driver:
            raise OSError("cannot open shared object file")

    monkeypatch.setattr(hardware, "version", lambda _: build)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    assert hardware._may_have_cuda() == asked


def test_cuda_agrees_with_torch() -> None:
    assert hardware.has_cuda() == torch.cuda.is_available()


@pytest.mark.skipif(not metadata.version("torch").endswith("+cpu"), reason="for builds that say what they are")
def test_nothing_imports_torch_to_tell() -> None:
    code = (
        "import sys; from app.engines.hardware import *; has_cuda(), has_vnni(), has_bfloat16(); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "False"

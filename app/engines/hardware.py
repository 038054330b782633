"""Capabilities of this machine: CPU flags and CUDA. Imports torch, which takes seconds, only where nothing else can tell."""

import ctypes
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_X86 = ("x86_64", "AMD64", "i386", "i686")

_CPU_BUILD = "+cpu"
_ROCM_BUILD = "rocm"
"""Local versions of torch's builds, as in `2.13.0+cpu`. That of CUDA has `+cu126`, or none at all."""


def has_vnni() -> bool:
    """Return True if the CPU has VNNI, the int8 dot-product instructions without which int8 is not faster than float32."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_flags())


def has_bfloat16() -> bool:
    """Return True if the CPU multiplies in bfloat16; without, OpenVINO emulates it at a fraction of float32's speed.

    CPUs with AMX have AVX512_BF16 too. What OpenVINO reports (`OPTIMIZATION_CAPABILITIES`) is this same bit, and a compiled
    model reports bfloat16 even if it emulates it.
    """
    return "avx512_bf16" in cpu_flags()


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets of an x86 CPU, as Linux and torch name them; none of another CPU."""
    if platform.machine() not in _X86:
        return frozenset()
    if sys.platform == "linux":
        try:
            text = cpuinfo.read_text()
        except OSError:
            text = ""
        for line in text.splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return frozenset(flags.split())
    import torch

    return frozenset(name for name, has in torch.cpu.get_capabilities().items() if has is True)


@cache
def has_cuda() -> bool:
    """Return True if torch has a CUDA device. Imports torch only if that cannot be told otherwise."""
    if not _may_have_cuda():
        return False
    import torch

    return torch.cuda.is_available()


def _may_have_cuda() -> bool:
    """Return False if torch is a build for CPUs, or if there is no driver of NVIDIA's that it could load."""
    try:
        build = version("torch")
    except PackageNotFoundError:
        return True
    if build.endswith(_CPU_BUILD):
        return False
    if sys.platform != "linux" or _ROCM_BUILD in build:
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # as CUDA's runtime opens it
    except OSError:
        return False
    return True

"""Facts about this machine, and its floor: matrix product and memory bandwidth (fma.py has the limit of the CPU)."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from app.engines.hardware import has_bfloat16, has_vnni
from app.process.cpu import available_cpus

_PACKAGES = ("torch", "openvino", "pillow", "simplejpeg", "cykooz-resizer", "fastapi", "uvicorn", "uvloop", "numpy")
_SIDE = 2048
"""Side of the matrices: large enough for full speed, small enough for a round."""

_BYTES = 512 * 2**20


def describe() -> dict[str, object]:
    """Return hardware, versions and commit."""
    facts: dict[str, object] = {
        "cpu": _cpu(),
        "cores": available_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def engines() -> tuple[str, ...]:
    """Return the engines to compare here, with their dtype unless `auto` takes it."""
    if torch.cuda.is_available():
        return ("torch",)
    bfloat16 = ("openvino bfloat16",) if has_bfloat16() else ()
    return ("torch", "openvino", *bfloat16, *(("openvino int8",) if has_vnni() else ()))


def matrix_flops() -> float:
    """Measure FLOP/s of a matrix product: float32 on a CPU, bfloat16 on a GPU."""
    device, dtype, side = ("cuda", torch.bfloat16, 8192) if torch.cuda.is_available() else ("cpu", torch.float32, _SIDE)
    torch.set_num_threads(available_cpus())
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best_time(lambda: torch.mm(left, right), device)


def memory_bandwidth() -> float:
    """Measure bytes a second, read and written, of a copy larger than any cache."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(available_cpus())
    source = torch.ones(_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _BYTES / _best_time(lambda: target.copy_(source), device)


def _best_time(work: object, device: str) -> float:
    """Return the shortest of six times, the least disturbed one."""
    assert callable(work)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # OpenVINO, on a machine with a GPU
        return "absent"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"

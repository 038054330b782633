"""Limits of a worker process (rlimits, OOM score, death with its parent). Linux only, as is all of the process pool."""

import ctypes
import math
import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

_BYTES_A_PIXEL = 24
"""Memory per pixel; the most that was measured is 22, for a HEIC of 10 bits in 4:4:4 with alpha."""

_BYTES_A_BYTE = 8
"""Memory per byte of the encoded image, which is read, taken apart and put together again."""

_FLOOR_BYTES = 256 << 20

_SPARE_CPU_S = 2
_PR_SET_PDEATHSIG = 1


def needed_bytes(max_image_pixels: int, max_image_bytes: int) -> int:
    """Return the memory in which every image within the limits can be decoded."""
    return _FLOOR_BYTES + _BYTES_A_PIXEL * max_image_pixels + _BYTES_A_BYTE * max_image_bytes


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; exit now if it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def confine(memory_bytes: int, *, threads: bool = False) -> None:
    """Deny this process all that decoding does not need: more memory than this, files, sockets, other processes.

    `threads` keeps the right to start those and, since the kernel counts them together, processes.
    Where the machine or the container runs out of memory, the kernel ends this process before the service.
    """
    with suppress(OSError):  # where /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, in_use + memory_bytes)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        _lower(limit, 0)  # what is open stays open
    if not threads:
        _lower(resource.RLIMIT_NPROC, 0)


def limit_cpu(seconds: float) -> None:
    """Have the kernel end this process if it uses much more CPU time than this from now on, should the pool not end it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + seconds) + _SPARE_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))

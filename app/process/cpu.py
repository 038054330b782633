"""CPU cores available to this process, and the priority of its threads."""

import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

_CGROUP = Path("/sys/fs/cgroup")

_NICE = 10
"""Nice value of compute threads above the event loop's: about a tenth of its weight."""

_MAX_NICE = 19

T = TypeVar("T")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Return the cores in the process's affinity mask, or in its cgroup's quota if that is lower; at least 1.

    A container with `--cpus 2` on a machine of 64 cores sees all 64 in its mask; the quota is in `cpu.max` (cgroup v2,
    "quota period" in microseconds) or in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def lower_priority(service: int | None = None) -> None:
    """Lower the priority of this thread, and of all threads and processes that it will start, below the event loop's.

    Compute threads are always runnable; the event loop needs little CPU, but needs it at once for refusals, probes, and the
    next batch of an idle device. Nice values have no effect beyond a container's own share of the machine.

    Args:
        service: id of the process with the event loop in its main thread. Default: this process.
    """
    if sys.platform == "linux":  # elsewhere it would affect the whole process
        with suppress(OSError):
            event_loop = os.getpriority(os.PRIO_PROCESS, service or os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(event_loop + _NICE, _MAX_NICE))


def at_lowest_priority(work: Callable[[], T]) -> T:
    """Do work in a thread that takes what no other wants, and return its result. Blocks.

    Threads that it starts have that priority too, and cannot be raised: it must start none that serve later.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="lowest priority", initializer=partial(_renice, _MAX_NICE)) as pool:
        return pool.submit(work).result()


def _renice(nice: int) -> None:
    if sys.platform == "linux":  # elsewhere it would affect the whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _quota(cgroup: Path) -> float | None:
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None

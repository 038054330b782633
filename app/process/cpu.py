"""How many CPU cores this process may use, and who goes first on them."""

import math
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

_NICE = 10
"""So much more than the event loop: about a tenth of its weight."""

_NICEST = 19


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """Cores of the process's affinity mask, or of its cgroup's quota where that is less; at least 1.

    A container with `--cpus 2` on a machine of 64 cores sees all 64 in its mask; the quota is in `cpu.max` (cgroup v2,
    "quota period" in microseconds) or in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def give_way(service: int | None = None) -> None:
    """Let this thread, and all threads and processes that it will start, wait for the event loop where both want a core.

    What computes is always ready to; the event loop needs little, but at once: refusals and probes must not wait for
    pictures, nor an idle device for the next ones. Nice values count only within a container's own share of the machine.

    Args:
        service: id of the process that the event loop is in, as its main thread. Default: this process.
    """
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with suppress(OSError):
            event_loop = os.getpriority(os.PRIO_PROCESS, service or os.getpid())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(event_loop + _NICE, _NICEST))


def _quota(cgroup: Path) -> float | None:
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None

import os
import threading
from pathlib import Path

import pytest

from app.process.cpu import at_lowest_priority, available_cpus

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, CORES, id="no-cgroup"),
        pytest.param({"cpu.max": "max 100000\n"}, CORES, id="v2-without-a-quota"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2-half-a-core"),
        pytest.param({"cpu.max": "6400000 100000\n"}, CORES, id="v2-more-than-there-is"),
        pytest.param({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, id="v1"),
        pytest.param({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES, id="v1-without-a-quota"),
        pytest.param({"cpu.max": "garbage"}, CORES, id="unreadable"),
    ],
)
def test_cores_are_bounded_by_the_cgroup_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cpus(tmp_path) == expected


def test_work_at_the_lowest_priority() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert at_lowest_priority(priority) == 19
    assert priority() == before
    with pytest.raises(ZeroDivisionError):
        at_lowest_priority(lambda: 1 / 0)

"""Limits of workers that are tested in a process of their own."""

import signal
import subprocess
import sys

from tests.support.models import ROOT

SPINNING = """
from app.decoding.pool.sandbox import limit_cpu
limit_cpu(-2)  # plus 2 s to spare
while True:
    pass
"""


def test_kernel_ends_worker_over_cpu_limit() -> None:
    spinning = subprocess.run([sys.executable, "-c", SPINNING], cwd=ROOT, timeout=120, check=False)
    assert spinning.returncode == -signal.SIGXCPU

"""Limits of decoding processes that need a process of their own to be seen."""

import signal
import subprocess
import sys

from tests.support.models import ROOT

SPINNING = """
from app.decoding.pool.sandbox import limit_cpu
limit_cpu(-2)  # and two are spare
while True:
    pass
"""


def test_kernel_ends_worker_over_cpu_limit() -> None:
    spinning = subprocess.run([sys.executable, "-c", SPINNING], cwd=ROOT, timeout=120, check=False)
    assert spinning.returncode == -signal.SIGXCPU

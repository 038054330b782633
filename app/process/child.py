"""Processes of the service's own modules, which speak with it over a socket."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_NICEST = 19


def start_child(module: str, descriptor: int) -> subprocess.Popen[bytes]:
    """Start `python -m module DESCRIPTOR`, which inherits the descriptor. It needs no setting, and some are secret.

    Its standard error is copied to the service's, which may block, and it is reaped, by a thread.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("VIT_")}
    # not asyncio's, whose loop may be closed before the process has ended
    process = subprocess.Popen(
        (sys.executable, "-P", "-m", module, str(descriptor)),
        env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[descriptor],
    )
    threading.Thread(target=_echo_and_reap, args=(process,), name=f"{module}'s stderr", daemon=True).start()
    return process


def be_ended_first() -> None:
    """Have the kernel end this process before the service where the machine or the container runs out of memory."""
    with suppress(OSError):  # not Linux, or /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")


def take_lowest_priority() -> None:
    """Give this process the lowest priority of those that still get a share of the CPU."""
    with suppress(OSError):
        os.nice(_NICEST)


def _echo_and_reap(process: subprocess.Popen[bytes]) -> None:
    """Copy a process's standard error to the service's until it ends, and reap it."""
    assert process.stderr is not None
    with process.stderr as stderr:
        for line in stderr:
            sys.stderr.write(line.decode(errors="backslashreplace"))
    process.wait()

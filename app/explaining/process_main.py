"""python -m app.explaining.process_main FD: the process that explains, at the lowest priority.

It takes only what the service leaves, and ends when the socket to the service closes.
"""

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from app.process.signals import IGNORED, STOP

_NICEST = 19


def main(descriptor: int) -> None:
    """Serve explanations on a socket until it is closed."""
    for number in (*STOP, *IGNORED):  # only the service acts on them
        signal.signal(number, signal.SIG_IGN)
    _yield_to_all_others()
    from app.explaining.model_copy import serve  # torch starts threads, which inherit the priority

    with socket.socket(fileno=descriptor) as connection:
        serve(connection)


def _yield_to_all_others() -> None:
    """Take only CPU time that no other process wants: Linux's idle class, elsewhere the lowest priority.

    Where the machine or the container runs out of memory, the kernel ends this process before the service.
    """
    with suppress(OSError):  # not Linux, or /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        os.nice(_NICEST)
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""python -m app.explaining.process_main FD: the process that explains, at the lowest priority.

It takes only what the service leaves, and ends when the socket to the service closes.
"""

import os
import signal
import socket
import sys
from contextlib import suppress

from app.process.child import be_ended_first, take_lowest_priority
from app.process.signals import IGNORED, STOP


def main(descriptor: int) -> None:
    """Serve explanations on a socket until it is closed."""
    for number in (*STOP, *IGNORED):  # only the service acts on them
        signal.signal(number, signal.SIG_IGN)
    _yield_to_all_others()
    from app.explaining.model_copy import serve  # torch starts threads, which inherit the priority

    with socket.socket(fileno=descriptor) as connection:
        serve(connection)


def _yield_to_all_others() -> None:
    """Take only CPU time that no other process wants: Linux's idle class, elsewhere the lowest priority."""
    be_ended_first()
    take_lowest_priority()
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main(int(sys.argv[1]))

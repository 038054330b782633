"""Signals to the service: those that stop it, and those that mean nothing to it."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""From a supervisor, Ctrl-C, a terminal that closes, Ctrl-\\, and the system when a limit of CPU time is reached."""

MEANINGLESS = (signal.SIGUSR1, signal.SIGUSR2)
"""Other services open their logs anew on these, or read their settings; by default they would end the process."""

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(signals: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Have a handler called for signals; not for those that were ignored when the process started, as `nohup` has it."""
    before = {sig: signal.getsignal(sig) for sig in signals}
    taken = [sig for sig, handling in before.items() if handling is not signal.SIG_IGN]
    for sig in taken:
        signal.signal(sig, handler)
    try:
        yield
    finally:
        for sig in taken:
            signal.signal(sig, before[sig])

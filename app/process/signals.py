"""Signals that stop the service, and signals that it ignores."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""Signals of a supervisor, Ctrl-C, a closing terminal, Ctrl-\\, and the soft limit of CPU time."""

IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that other services use to reopen logs or reload settings; their default action would end the process."""

RELOAD = (signal.SIGHUP,)
"""Signal to read files of settings again, where there is one; it stops the service otherwise."""

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(signals: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handle signals inside the block, except those already ignored, as SIGHUP is under `nohup`."""
    before = {sig: signal.getsignal(sig) for sig in signals}
    taken = [sig for sig, handling in before.items() if handling is not signal.SIG_IGN]
    for sig in taken:
        signal.signal(sig, handler)
    try:
        yield
    finally:
        for sig in taken:
            signal.signal(sig, before[sig])

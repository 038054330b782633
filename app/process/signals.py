"""Signals that stop the service, and signals that it ignores."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""Sent by a supervisor, Ctrl-C, a terminal that closes, Ctrl-\\, and the system at the soft limit of CPU time."""

MEANINGLESS = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent to services that reopen logs or reload settings on them; the default action would end the process."""

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(signals: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Handle signals inside the block, except those that are ignored already, as SIGHUP is under `nohup`."""
    before = {sig: signal.getsignal(sig) for sig in signals}
    taken = [sig for sig, handling in before.items() if handling is not signal.SIG_IGN]
    for sig in taken:
        signal.signal(sig, handler)
    try:
        yield
    finally:
        for sig in taken:
            signal.signal(sig, before[sig])

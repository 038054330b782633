"""ExitStatus: how a worker process ended, and whose doing that was."""

import os
import signal
from dataclasses import dataclass

FAULT = 1
"""Exit code of a worker that ends by an exception in its own code."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """Status of a reaped process as `os.waitpid` gives it; -1 if it was reaped with its zygote."""

    wait_status: int = -1

    @property
    def is_kill(self) -> bool:
        """True for SIGKILL, which comes from outside, and for an unknown status."""
        return self.wait_status < 0 or self._signal == signal.SIGKILL

    @property
    def is_fault(self) -> bool:
        """True if an exception in the worker's own code ended it."""
        return self.wait_status >= 0 and os.waitstatus_to_exitcode(self.wait_status) == FAULT

    def __str__(self) -> str:
        if self.wait_status < 0:
            return "unknown"
        return f"exit status {os.waitstatus_to_exitcode(self.wait_status)}" if self._signal is None else self._signal.name

    @property
    def _signal(self) -> signal.Signals | None:
        return signal.Signals(os.WTERMSIG(self.wait_status)) if os.WIFSIGNALED(self.wait_status) else None

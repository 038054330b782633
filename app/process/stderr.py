"""Non-blocking standard error: text is queued, and a thread writes it."""

import atexit
import io
import os
import select
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

import structlog

_MAX_QUEUED_LINES = 5000
"""Maximum number of queued lines: about 1 MB, or half a minute of a busy service."""

_FINISH_S = 2.0
"""Seconds that the end of the process waits for the reader."""

_log = structlog.get_logger(__name__)


class _Line(threading.local):
    """Text of the unfinished line of each thread."""

    text = ""


class QueuedStderr(io.TextIOBase):
    """A text stream that never blocks, even if its reader stops.

    Lines beyond the maximum are dropped and counted, and so are lines that cannot be written (a closed pipe, a full disk).
    Later one line in the log has their number. Writing takes no lock, since a finalizer may log at any moment.

    Args:
        fd: file descriptor to write to.
        encoding: encoding of the text.
        max_lines: maximum number of queued lines.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", max_lines: int = _MAX_QUEUED_LINES) -> None:
        self._fd = fd
        self._encoding = encoding
        self._max_lines = max_lines
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._line = _Line()
        self._direct = False
        self._counting = threading.RLock()
        self._dropped = self._reported = 0
        self._failed = self._torn = False
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    # methods for any thread

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has an attribute
        return self._encoding

    @property
    def dropped_lines(self) -> int:
        """Number of lines that could not be written."""
        return self._dropped

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._line.text += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Queue the text of this thread, even an unfinished line."""
        text, self._line.text = self._line.text, ""
        if not text:
            return
        data = text.encode(self._encoding, "backslashreplace")
        if self._direct:
            self._write(data)
        elif self._queue.qsize() < self._max_lines or threading.current_thread() is self._thread:
            self._queue.put(data)  # the writer's own line has the number of dropped lines
        else:
            self._drop(data)

    # methods for the end of a process, and for a fork

    def finish(self, timeout_s: float = _FINISH_S) -> bool:
        """Wait until the queue is written. Returns False on timeout.

        Afterwards each thread writes its own text, since the writer thread does not survive interpreter shutdown.
        """
        self.flush()
        if self._direct:
            return True
        deadline = time.monotonic() + timeout_s
        for _ in range(2):  # the count of dropped lines may be queued behind the first event
            written = threading.Event()
            self._queue.put(written)
            done = written.wait(max(0.0, deadline - time.monotonic()))
        self._direct = done
        return done

    def after_fork(self) -> None:
        """Write without the queue in a forked process, which has no writer thread."""
        self._direct = True
        self._counting = threading.RLock()

    # methods of the writer thread

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, bytes):
                self._write(item)
            self._report_dropped()
            if isinstance(item, threading.Event):
                item.set()

    def _write(self, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._torn else data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                    self._torn = bool(rest)
                except BlockingIOError:  # another process that shares the file has set O_NONBLOCK
                    select.select((), (self._fd,), ())
        except OSError:
            self._failed = True
            self._drop(data)
        else:
            self._failed = False

    def _drop(self, data: bytes) -> None:
        lines = max(1, data.count(b"\n"))
        with self._counting:
            self._dropped += lines

    def _report_dropped(self) -> None:
        unreported = self._dropped - self._reported
        if unreported and not self._failed and self._queue.qsize() <= self._max_lines // 2:
            self._reported += unreported
            _log.warning("log lines dropped: standard error was not read, or could not be written", lines=unreported)


_stderr: QueuedStderr | None = None


def queue_stderr() -> None:
    """Replace `sys.stderr` by a queue. Call it once, before anything is logged."""
    global _stderr
    _occupy_standard_files()
    encoding = getattr(sys.stderr, "encoding", "utf-8")  # sys.stderr is None if it was closed when Python started
    sys.stderr = _stderr = QueuedStderr(2, encoding)
    atexit.register(_stderr.finish)
    os.register_at_fork(after_in_child=_stderr.after_fork)


def finish_stderr() -> None:
    """Wait up to two seconds until standard error is written. `os._exit` needs this, as it runs no exit handlers."""
    if _stderr is not None:
        _stderr.finish()


def dropped_lines() -> int:
    """Return the number of lines of standard error that could not be written."""
    return 0 if _stderr is None else _stderr.dropped_lines


def _occupy_standard_files() -> None:
    """Open /dev/null for each closed standard file: else a socket would get its number, and libraries would print to it."""
    for fd in range(3):
        with suppress(OSError):
            os.fstat(fd)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number

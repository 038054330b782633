"""Standard error that nobody waits for: what is written is queued, and a thread passes it on to whoever reads."""

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
"""How far the reader may be behind: about 1 MB, or half a minute of a busy service."""

_FINISH_S = 2.0
"""How long the end of the process waits for the reader."""

_log = structlog.get_logger(__name__)


class _Line(threading.local):
    """What a thread has written since its last line's end."""

    text = ""


class QueuedStderr(io.TextIOBase):
    """A text stream whose writers never wait, whatever becomes of its reader.

    Lines beyond the bound are dropped and counted, and so are those that cannot be written (a closed pipe, a full disk); once
    there is room again, one line in the log tells how many. No lock is held while anything is written: a finalizer may log.

    Args:
        fd: where the lines go.
        encoding: of the text there.
        max_lines: how many may be queued.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", max_lines: int = _MAX_QUEUED_LINES) -> None:
        self._fd = fd
        self._encoding = encoding
        self._max_lines = max_lines
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._line = _Line()
        self._direct = False
        self._counting = threading.RLock()
        self._dropped = self._told = 0
        self._failed = self._torn = False
        threading.Thread(target=self._pass_on, name="stderr", daemon=True).start()

    # what writers see

    @property
    def encoding(self) -> str:  # type: ignore[override] # typeshed has an attribute
        return self._encoding

    @property
    def dropped_lines(self) -> int:
        """Lines that nobody will ever read."""
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
        """Queue what this thread has written, though its line may not have ended."""
        text, self._line.text = self._line.text, ""
        if not text:
            return
        data = text.encode(self._encoding, "backslashreplace")
        if self._direct:
            self._write(data)
        elif self._queue.qsize() < self._max_lines:
            self._queue.put(data)
        else:
            self._drop(data)

    # the ends of a process

    def finish(self, timeout_s: float = _FINISH_S) -> bool:
        """Wait until all is written that has been queued, but not for longer than this; tells whether it was.

        After that, writers write themselves: the thread does not outlive the interpreter's shutdown.
        """
        self.flush()
        if self._direct:
            return True
        deadline = time.monotonic() + timeout_s
        for _ in range(2):  # behind the first, there may be a line that tells of lines that were dropped
            written = threading.Event()
            self._queue.put(written)
            done = written.wait(max(0.0, deadline - time.monotonic()))
        self._direct = done
        return done

    def after_fork(self) -> None:
        """Have writers write themselves in a forked process, where there is no thread that would."""
        self._direct = True
        self._counting = threading.RLock()

    # the thread

    def _pass_on(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, bytes):
                self._write(item)
            self._tell_dropped()
            if isinstance(item, threading.Event):
                item.set()

    def _write(self, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._torn else data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                    self._torn = bool(rest)
                except BlockingIOError:  # somebody who shares it has made it so
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

    def _tell_dropped(self) -> None:
        untold = self._dropped - self._told
        if untold and not self._failed and self._queue.qsize() <= self._max_lines // 2:
            self._told += untold
            _log.warning("log lines dropped: standard error was not read, or could not be written", lines=untold)


_stderr: QueuedStderr | None = None


def queue_stderr() -> None:
    """Queue all that this process writes to `sys.stderr` from now on. Call it once, before anything is logged."""
    global _stderr
    _occupy_standard_files()
    encoding = getattr(sys.stderr, "encoding", "utf-8")  # None, if it was closed when Python started
    sys.stderr = _stderr = QueuedStderr(2, encoding)
    atexit.register(_stderr.finish)
    os.register_at_fork(after_in_child=_stderr.after_fork)


def finish_stderr() -> None:
    """Wait until standard error is written, at most for two seconds: for whoever ends the process without its usual end."""
    if _stderr is not None:
        _stderr.finish()


def dropped_lines() -> int:
    """Lines of standard error that could not be written."""
    return 0 if _stderr is None else _stderr.dropped_lines


def _occupy_standard_files() -> None:
    """Open what is closed of the first three files: else a socket would be one of them, and be sent what a library prints."""
    for fd in range(3):
        with suppress(OSError):
            os.fstat(fd)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it is the lowest number that is free

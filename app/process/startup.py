"""Startup, step by step: a slow step is logged, a failed one is explained in one sentence."""

import errno
import mmap
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

from app.errors import StartError

Step = Literal[
    "starting the decoders",
    "reading the configuration",
    "downloading the model",
    "reading the weights",
    "preparing the engine",
    "converting the model for OpenVINO",
    "compiling the model",
    "warming up",
]
"""Step of a start, as its log and errors name it."""

OnStep = Callable[[Step], None]

SLOW_S = 30.0
"""Seconds after which the log names the step of a slow start; doubled for each repetition, up to ten minutes."""

BUG = "this is a bug in vit-serve, please report it with the lines below"

_MAX_PAUSE_S = 600.0
_LEAST_MEMORY_BYTES = 768 << 20
"""Address space that torch and the smallest model need."""

_NO_MEMORY = re.compile("bad_alloc|allocate .*memory|not enough memory|out of memory|failed to map segment", re.IGNORECASE)
"""Messages of libraries that ran out of memory; their exceptions are of any type."""

_NO_THREADS = re.compile("start new thread|pthread_create|Resource temporarily unavailable")

_log = structlog.get_logger(__name__)


@contextmanager
def watched_start(slow_s: float = SLOW_S) -> Iterator[OnStep]:
    """Watch a start; yields a function to call at the beginning of each step.

    Raises:
        StartError: a step failed for lack of memory or threads, or because of a file. Other exceptions pass through.
    """
    watch = _Watch(slow_s)
    try:
        watch.thread.start()
        yield watch.enter
    except Exception as error:
        explained = explain(error, watch.step)
        if explained is None:
            raise
        raise explained from error
    finally:
        watch.ended.set()
        if watch.thread.ident is not None:
            watch.thread.join()


class _Watch:
    """Thread that logs the current step of a slow start."""

    def __init__(self, slow_s: float) -> None:
        self.step: str = "starting"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, args=(slow_s,), name="watch the start", daemon=True)

    def enter(self, step: Step) -> None:
        self.step = step

    def _look(self, pause_s: float) -> None:
        began = time.monotonic()
        while not self.ended.wait(pause_s):
            _log.warning("the start is slow", waits_for=self.step, seconds=round(time.monotonic() - began))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def explain(error: BaseException, doing: str) -> StartError | None:
    """Return the error in one sentence for the operator; None if it is a bug.

    Args:
        doing: the activity that failed, such as a `Step`.
    """
    if isinstance(error, StartError):
        return None
    if lacks_memory(error):
        return too_little_memory(doing)
    if _NO_THREADS.search(str(error)):
        limits = "raise their limit (ulimit -u, pids_limit), or give the process more memory"
        return StartError(f"{doing} failed: the process may start no more threads, {limits}")
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return StartError(f"{doing} failed: {error.strerror or error}{where}")
    return None


def too_little_memory(doing: str) -> StartError:
    return StartError(f"there is too little memory for {doing}: give the process more, or serve a smaller model")


def lacks_memory(error: BaseException | None) -> bool:
    """Return True if an error, or one that led to it, means that there is too little memory."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, ImportError | OSError | RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_memory() -> None:
    """Raise if there is so little memory that libraries would abort the process without a message.

    Raises:
        StartError: there is too little memory.
    """
    try:
        # reserves address space only, which fails under a limit on the process alone
        mmap.mmap(-1, _LEAST_MEMORY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, MemoryError):
        needed = f"the smallest model needs {_LEAST_MEMORY_BYTES >> 20} MiB more"
        raise StartError(f"there is too little memory: {needed}, raise the limit of the process (ulimit -v)") from None

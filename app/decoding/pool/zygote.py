"""Zygote: the service's side of the process that workers are forked from; starts it, and has it fork and reap workers."""

import fcntl
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO

from app.decoding.pool.job import MAX_JOB_BYTES, Job
from app.decoding.pool.messages import ANSWER, COMMAND, MAX_REPLY_BYTES, REQUEST, Reply, read_reply
from app.errors import StartError

WORKER_IMPORTS = "app.decoding.preprocessors"
"""Module that imports all that workers call."""

_TIMEOUT_S = 60.0
"""Seconds the zygote may take to answer: long enough for imports on a busy machine."""

_PROBE_TIMEOUT_S = 20.0
"""Seconds a new worker may take for its first image, which takes milliseconds on an idle machine."""

_INHERITED = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ"}) | {
    f"PYTHON{name}"
    for name in ("DONTWRITEBYTECODE", "HASHSEED", "HOME", "IOENCODING", "MALLOC", "NOUSERSITE", "PYCACHEPREFIX", "UTF8")
}
_INHERITED_PREFIXES = ("GLIBC_", "LC_", "LD_", "MALLOC_")
"""Environment variables that decoding needs; all others may hold secrets."""


def can_fork_workers() -> bool:
    """Return True if the system can share memory without a name, as the service and its workers do."""
    return hasattr(os, "memfd_create")


class ZygoteDied(Exception):
    """The zygote has ended, or does not answer."""


class WorkerFailed(Exception):
    """A new worker did not decode its first image; the message says why."""


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """A worker process: its zygote, its id, the socket to it, and the memory shared with it."""

    zygote: "Zygote"
    pid: int
    connection: socket.socket
    memory: mmap.mmap


class Zygote:
    """The process that workers are forked from. Making one starts it, and does not wait for its imports.

    Args:
        module: the module that it imports.
    """

    def __init__(self, module: str = WORKER_IMPORTS) -> None:
        self.module = module
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_TIMEOUT_S)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the working directory of the service
                [sys.executable, "-P", "-m", "app.decoding.pool.zygote_main", str(theirs.fileno()), module],
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # the service's own may block
                pass_fds=[theirs.fileno()],
            )
        self._echo = threading.Thread(target=_echo, args=(self._process.stderr,), name="zygote's stderr", daemon=True)
        self._echo.start()

    def warm_up(self, job: Job) -> None:
        """Wait for the imports, and send the job of the workers. Blocks, for half a second.

        Raises:
            ZygoteDied: it ended.
        """
        description = pickle.dumps(job)
        if len(description) > MAX_JOB_BYTES:
            raise StartError("the job of the decoding processes is too large to be sent to them")
        self._receive()
        self._control.send(description)
        self._receive()

    def start_worker(self, job: Job) -> WorkerProcess:
        """Fork a worker, and have it decode the probe. Blocks, for milliseconds.

        Raises:
            ZygoteDied: the zygote ended.
            WorkerFailed: the worker ended, or could not decode the probe.
            OSError: no memory, process or descriptor is left; the zygote is well.
        """
        worker = self._fork(job)
        reply = _prove(worker, job)
        if reply is not None and reply.error is None:
            worker.connection.setblocking(False)
            return worker
        worker.connection.close()
        status = self.reap(worker)
        raise WorkerFailed(f"it ended at once, with {describe_exit(status)}" if reply is None else str(reply.error))

    def reap(self, worker: WorkerProcess) -> int | None:
        """Kill a worker if it still runs, and reap it. Blocks, for a moment.

        Returns:
            Its exit status, or minus the signal that ended it; None if the zygote does not know the worker.

        Raises:
            ZygoteDied: the zygote ended, and its workers with it.
        """
        with self._lock:
            status = self._command(worker.pid)
        return None if status < 0 else os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the zygote and its workers. Blocks, for a second at most."""
        with suppress(OSError):  # closed already
            self._control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._echo.join(1)

    def _fork(self, job: Job) -> WorkerProcess:
        with ExitStack() as given_away:
            memory = _shared_memory(job.shared_bytes)
            given_away.callback(os.close, memory)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given_away.enter_context(theirs)
            try:
                with self._lock:
                    pid = self._command(0, theirs.fileno(), memory)
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
                return WorkerProcess(self, pid, ours, mmap.mmap(memory, job.shared_bytes))
            except BaseException:
                ours.close()
                raise

    def _command(self, pid: int, *fds: int) -> int:
        """Send a command, and return its answer; see `messages`. Blocks."""
        try:
            socket.send_fds(self._control, [COMMAND.pack(pid)], fds)
        except OSError as error:
            raise ZygoteDied from error
        message = self._receive()
        if len(message) != ANSWER.size:
            raise ZygoteDied
        answer: int = ANSWER.unpack(message)[0]
        return answer

    def _receive(self) -> bytes:
        """Receive an answer. Blocks."""
        try:
            answer = self._control.recv(64)
        except OSError as error:
            raise ZygoteDied from error
        if not answer:
            raise ZygoteDied
        return answer


def describe_exit(status: int | None) -> str:
    """Return the result of `reap` in words."""
    if status is None:
        return "unknown"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _prove(worker: WorkerProcess, job: Job) -> Reply | None:
    """Have a new worker decode the probe; None if it ends or hangs. Blocks."""
    try:
        worker.connection.settimeout(_PROBE_TIMEOUT_S)
        worker.memory[: len(job.probe)] = job.probe
        worker.connection.send(REQUEST.pack(0, len(job.probe)) + job.preprocessor.pickled)
        return read_reply(worker.connection.recv(MAX_REPLY_BYTES))
    except OSError:
        return None


def _echo(stderr: IO[bytes]) -> None:
    """Copy the zygote's standard error to the service's, until it ends."""
    with stderr:
        for line in stderr:
            sys.stderr.write(line.decode(errors="backslashreplace"))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Keep what decoding needs, and one thread in every library: a process with several cannot be forked safely."""
    inherited = {name: value for name, value in variables.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)}
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return inherited | single | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _shared_memory(size: int) -> int:
    """Return a memfd, sealed against resizing: a worker that shrank it would end the service with SIGBUS."""
    memory = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory

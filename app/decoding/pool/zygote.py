"""Zygote: the service's side of it, which starts it and asks it for workers."""

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

from app.decoding.pool.messages import ANSWER, COMMAND, MAX_REPLY_BYTES, REQUEST, Reply, read_reply
from app.decoding.pool.zygote_main import MAX_JOB_BYTES, Job
from app.errors import StartError

_PATIENCE_S = 60.0
"""For imports on a machine that has much else to do."""

_PROBE_S = 20.0
"""For a new worker to decode its first image; it takes milliseconds on an idle machine."""

_INHERITED = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ"}) | {
    f"PYTHON{name}"
    for name in ("DONTWRITEBYTECODE", "HASHSEED", "HOME", "IOENCODING", "MALLOC", "NOUSERSITE", "PYCACHEPREFIX", "UTF8")
}
_INHERITED_PREFIXES = ("GLIBC_", "LC_", "LD_", "MALLOC_")
"""Variables that decoding needs; the others of the service may hold keys."""


class ZygoteDied(Exception):
    """The zygote has ended, or does not answer."""


class WorkerFailed(Exception):
    """A new worker did not decode its first image; the message says why."""


@dataclass(eq=False, slots=True)
class Child:
    """A decoding process: its zygote, its id, the socket to it, and the memory shared with it."""

    zygote: "Zygote"
    pid: int
    connection: socket.socket
    memory: mmap.mmap


class Zygote:
    """The process that decoding processes are forked from, starting: it has not imported anything yet.

    Args:
        module: what it imports.
    """

    def __init__(self, module: str = "app.decoding.image") -> None:
        self.module = module
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_PATIENCE_S)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the directory that the service happens to run in
                [sys.executable, "-P", "-m", "app.decoding.pool.zygote_main", str(theirs.fileno()), module],
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # the service's own may block
                pass_fds=[theirs.fileno()],
            )
        self._echo = threading.Thread(target=_echo, args=(self._process.stderr,), name="zygote's errors", daemon=True)
        self._echo.start()

    def warm_up(self, job: Job) -> None:
        """Wait until it has imported everything, and tell it what decoding processes will do. Blocks, for a second or two.

        Raises:
            ZygoteDied: it ended.
        """
        description = pickle.dumps(job)
        if len(description) > MAX_JOB_BYTES:
            raise StartError("what decoding processes do cannot be told to them")
        self._hear()
        self._control.send(description)
        self._hear()

    def start_worker(self, job: Job) -> Child:
        """Fork a worker, and have it decode its first image. Blocks, for milliseconds.

        Raises:
            ZygoteDied: the zygote ended.
            WorkerFailed: the worker ended, or could not decode the image.
            OSError: there is no memory, process or descriptor left for another one; the zygote is well.
        """
        child = self._fork(job)
        reply = _prove(child, job.probe)
        if reply is not None and reply.error is None:
            child.connection.setblocking(False)
            return child
        child.connection.close()
        status = self.end(child)
        raise WorkerFailed(f"it ended at once, with {how_it_ended(status)}" if reply is None else str(reply.error))

    def end(self, child: Child) -> int:
        """Kill a worker if it still runs, and reap it. Blocks, for a moment.

        Returns:
            How it ended: a status as of `os.waitpid`, or -1 if that is not known.

        Raises:
            ZygoteDied: the zygote ended, and its workers with it.
        """
        with self._lock:
            return self._ask(COMMAND.pack(child.pid), [])

    def _fork(self, job: Job) -> Child:
        with ExitStack() as given_away:
            memory = _shared_memory(job.shared_bytes)
            given_away.callback(os.close, memory)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given_away.enter_context(theirs)
            try:
                with self._lock:
                    pid = self._ask(COMMAND.pack(0), [theirs.fileno(), memory])
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
                return Child(self, pid, ours, mmap.mmap(memory, job.shared_bytes))
            except BaseException:
                ours.close()
                raise

    def close(self) -> None:
        """End it and all that it has forked. Blocks, for a second at most."""
        with suppress(OSError):  # it is closed already
            self._control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._echo.join(1)

    def _ask(self, command: bytes, fds: list[int]) -> int:
        try:
            socket.send_fds(self._control, [command], fds)
        except OSError as error:
            raise ZygoteDied from error
        message = self._hear()
        if len(message) != ANSWER.size:
            raise ZygoteDied
        answer: int = ANSWER.unpack(message)[0]
        return answer

    def _hear(self) -> bytes:
        """Receive an answer. Blocks."""
        try:
            answer = self._control.recv(64)
        except OSError as error:
            raise ZygoteDied from error
        if not answer:
            raise ZygoteDied
        return answer


def how_it_ended(status: int) -> str:
    """Say in words what a status of `os.waitpid` means; -1 is one that nobody knows."""
    if status < 0:
        return "unknown"
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _prove(child: Child, probe: bytes) -> Reply | None:
    """Have a new worker decode its first image; None if it ends or hangs. Blocks."""
    try:
        child.connection.settimeout(_PROBE_S)
        child.memory[: len(probe)] = probe
        child.connection.send(REQUEST.pack(0, len(probe)))
        return read_reply(child.connection.recv(MAX_REPLY_BYTES))
    except OSError:
        return None


def _echo(errors: IO[bytes]) -> None:
    """Copy a process's standard error to this process's, until it ends."""
    with errors:
        for line in errors:
            sys.stderr.write(line.decode(errors="backslashreplace"))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Keep what decoding needs, with one thread in every library: a process with several cannot be forked safely."""
    inherited = {name: value for name, value in variables.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)}
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return inherited | single | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _shared_memory(size: int) -> int:
    """Memory with no name in any file system; sealed, because one that a process makes smaller ends whoever reads it."""
    memory = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory

"""The service's side of the zygote: starts it, and asks it for decoding processes."""

import fcntl
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from app.decoding.protocol import FORK, FORKED
from app.decoding.zygote import MAX_JOB_BYTES, Job
from app.errors import StartError

_PATIENCE_S = 60.0
"""For imports on a machine that has much else to do."""

_INHERITED = ("GLIBC_", "HOME", "LANG", "LC_", "LD_", "MALLOC_", "PATH", "PYTHON", "TMPDIR")
"""Variables that decoding needs, by their first letters; the service's own hold keys."""


class ZygoteDied(Exception):
    """It has ended, or does not answer."""


@dataclass(eq=False, slots=True)
class Child:
    """A decoding process: its id, the socket to it, and the memory shared with it."""

    pid: int
    connection: socket.socket
    memory: mmap.mmap


class Zygote:
    """The process that decoding processes are forked from, starting: it has not imported anything yet.

    Args:
        module: what it imports.
    """

    def __init__(self, module: str = "app.images") -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_PATIENCE_S)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the directory that the service happens to run in
                [sys.executable, "-P", "-m", "app.decoding.zygote", str(theirs.fileno()), module],
                env=_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # a reader of the service's own that stops must not stop this process
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

    def fork(self, job: Job, predecessor: int = 0) -> tuple[Child, int]:
        """Another decoding process; its predecessor, if there is one, is ended. Blocks, for milliseconds.

        Returns:
            The process, and how its predecessor ended: a status as of `os.waitpid`, or -1 if there was none.

        Raises:
            ZygoteDied: it ended.
            OSError: this process has no memory or descriptors left for another one; the zygote is well.
        """
        with ExitStack() as given_away:
            memory = _shared_memory(job.shared_bytes)
            given_away.callback(os.close, memory)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given_away.enter_context(theirs)
            try:
                with self._lock:
                    socket.send_fds(self._control, [FORK.pack(predecessor)], [theirs.fileno(), memory])
                    pid, status = FORKED.unpack(self._hear())
                ours.setblocking(False)
                return Child(pid, ours, mmap.mmap(memory, job.shared_bytes)), status
            except (OSError, ZygoteDied) as error:
                ours.close()
                raise ZygoteDied from error

    def close(self) -> None:
        """End it and all that it has forked."""
        self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._echo.join(1)

    def _hear(self) -> bytes:
        try:
            answer = self._control.recv(64)
        except OSError as error:
            raise ZygoteDied from error
        if not answer:
            raise ZygoteDied
        return answer


def _echo(errors: IO[bytes]) -> None:
    """Write what a process says on its standard error to this one's, until it ends."""
    with errors:
        for line in errors:
            sys.stderr.write(line.decode(errors="backslashreplace"))


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """One thread in every library: a process with several cannot be forked safely."""
    inherited = {name: value for name, value in variables.items() if name.startswith(_INHERITED)}
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return inherited | single | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _shared_memory(size: int) -> int:
    """Memory with no name in any file system; sealed, because one that a process makes smaller ends whoever reads it."""
    memory = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory

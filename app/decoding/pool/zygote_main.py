"""python -m app.decoding.pool.zygote_main FD MODULE: the process that workers are forked from; it sees no client's image.

It imports once what decoding needs and warms a decoder up, so that a new worker costs milliseconds and shares that memory.
It ends, with all it has forked, when the socket to the service closes: however the service has ended.
"""

import errno
import fcntl
import gc
import importlib
import io
import mmap
import os
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from app.decoding import Decode
from app.decoding.pool.attempt import DecodingFault, attempt
from app.decoding.pool.messages import ANSWER, COMMAND, REQUEST, Reply, write_reply
from app.decoding.pool.sandbox import allow_cpu, confine, end_with_parent
from app.errors import ServiceError
from app.pixels import Pixels
from app.process.cpu import give_way

MAX_JOB_BYTES = 65_536

FAULT_STATUS = 1
"""Exit status of a worker that ends by a fault of its own."""

FOR_THE_SERVICE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a supervisor may send to all processes at once; the service drains first, or takes no notice."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work of decoding processes, and its limits."""

    decode: Decode
    shape: tuple[int, int, int]
    """Of the pixels that it gives."""
    max_image_bytes: int
    memory_bytes: int
    timeout_s: float
    probe: bytes
    """An encoded image that every new worker decodes before it is given one of a client's."""
    threads: bool = False
    """Whether a worker may start threads, and so, as the kernel counts them together, processes."""

    @property
    def pixels_at(self) -> int:
        """Where in the shared memory the pixels are: behind the image."""
        return -(-self.max_image_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def shared_bytes(self) -> int:
        """Size of the shared memory."""
        return self.pixels_at + int(np.prod(self.shape))


def main(control: socket.socket, module: str) -> None:
    """Import, warm up, and fork whenever that is asked for."""
    for sig in FOR_THE_SERVICE:
        signal.signal(sig, signal.SIG_IGN)
    give_way(os.getppid())
    _end_with_peer(control, True)
    importlib.import_module(module)
    _end_with_peer(control, False)
    control.send(b"imported")
    if not (description := control.recv(MAX_JOB_BYTES)):
        return
    job: Job = pickle.loads(description)  # noqa: S301  # the service that started this process wrote it
    _warm_up(job.decode)
    gc.freeze()  # a collection would touch, and so copy, memory that all share
    control.send(b"warm")
    children = set[int]()
    while True:
        command, fds, *_ = socket.recv_fds(control, COMMAND.size, 2)
        if not command:
            break
        pid = COMMAND.unpack(command)[0]
        control.send(ANSWER.pack(_end(pid, children) if pid else _fork(control, fds, job, children)))
    for pid in list(children):
        _end(pid, children)


def _fork(control: socket.socket, fds: Sequence[int], job: Job, children: set[int]) -> int:
    """Fork a worker that has these: its socket and its memory. Return its id, or an errno below 0 if that fails."""
    zygote = os.getpid()
    with socket.socket(fileno=fds[0]) as connection:
        try:
            if (pid := os.fork()) == 0:
                _work(control, connection, fds[1], job, zygote)
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
        finally:
            os.close(fds[1])
    children.add(pid)
    return pid


def _work(control: socket.socket, connection: socket.socket, memory_fd: int, job: Job, zygote: int) -> NoReturn:
    """Be a worker until the service closes the connection."""
    status = FAULT_STATUS
    try:
        control.close()
        end_with_parent(zygote)
        _serve(connection, memory_fd, job)
        status = 0
    finally:
        os._exit(status)


def _end_with_peer(control: socket.socket, on: bool) -> None:
    """Have SIGIO sent, which ends this process, when the other side closes: the imports would not notice for a second."""
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)


def _end(pid: int, children: set[int]) -> int:
    """End a child, unless it already has; returns how it ended: a status as of `os.waitpid`, or -1 for what is no child."""
    if pid not in children:
        return -1
    os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so that the number is still its own
    children.remove(pid)
    return os.waitpid(pid, 0)[1]


def _warm_up(decode: Decode) -> None:
    """Have it import and set up what it does late, for every format."""
    from PIL import Image

    from app.decoding.samples import SAMPLES

    encoded = list(SAMPLES.values())
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO"):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (256, 192), "teal").save(file, image_format, exif=exif)
        encoded.append(file.getvalue())
    for image in encoded:
        try:
            decode(image)
        except ServiceError:  # a format that is not enabled
            continue


def _serve(connection: socket.socket, memory_fd: int, job: Job) -> None:
    """Decode one image after another, until the service closes the connection."""
    memory = mmap.mmap(memory_fd, job.shared_bytes)
    pixels = np.frombuffer(memory, np.uint8, offset=job.pixels_at).reshape(job.shape)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a C library's last words may quote the picture
    confine(job.memory_bytes, threads=job.threads)

    def decode(image_bytes: bytes) -> Pixels:
        decoded = job.decode(image_bytes)
        if decoded.shape != job.shape:
            raise ValueError("the pixels have another shape than the model takes")
        return decoded

    while request := connection.recv(REQUEST.size):
        number, length = REQUEST.unpack(request)
        allow_cpu(job.timeout_s)
        error: ServiceError | DecodingFault | None = None
        try:
            pixels[:] = attempt(decode, memory[:length])
        except (ServiceError, DecodingFault) as refused:
            error = refused
        connection.send(write_reply(Reply(number, error)))


if __name__ == "__main__":
    with suppress(BrokenPipeError, ConnectionResetError):  # the service has ended meanwhile
        main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])

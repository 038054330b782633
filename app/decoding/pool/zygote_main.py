"""python -m app.decoding.pool.zygote_main FD MODULE: the zygote, from which workers are forked; it sees no client's image.

It imports once what decoding needs and warms a decoder up, so that a new worker costs milliseconds and shares that memory.
It ends, with all its workers, when the socket to the service closes, however the service has ended.
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
from functools import lru_cache
from typing import NoReturn

from app.decoding import Decode, Preprocessor
from app.decoding.pool.attempt import DecodingFault, attempt
from app.decoding.pool.job import MAX_JOB_BYTES, Job
from app.decoding.pool.messages import ANSWER, COMMAND, FAULT, MAX_REQUEST_BYTES, REQUEST, Reply, write_reply
from app.decoding.pool.sandbox import confine, end_with_parent, limit_cpu
from app.errors import ServiceError
from app.process.cpu import lower_priority

SERVICE_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a supervisor may send to all processes at once; only the service acts on them."""


def main(control: socket.socket, module: str) -> None:
    """Import, warm up, and fork or reap workers as the service commands."""
    for sig in SERVICE_SIGNALS:
        signal.signal(sig, signal.SIG_IGN)
    lower_priority(os.getppid())
    _end_with_service(control, True)
    importlib.import_module(module)
    _end_with_service(control, False)
    control.send(b"imported")
    if not (description := control.recv(MAX_JOB_BYTES)):
        return
    job: Job = pickle.loads(description)  # noqa: S301  # written by the service that started this process
    _warm_up(job.preprocessor.decode)
    gc.freeze()  # a collection would write to, and so copy, the shared pages
    control.send(b"warm")
    children = set[int]()
    while True:
        command, fds, *_ = socket.recv_fds(control, COMMAND.size, 2)
        if not command:
            break
        pid = COMMAND.unpack(command)[0]
        control.send(ANSWER.pack(_reap(pid, children) if pid else _fork(control, fds, job, children)))
    for pid in list(children):
        _reap(pid, children)


def _end_with_service(control: socket.socket, on: bool) -> None:
    """Have the kernel end this process (SIGIO) when the service closes the socket: imports would not notice for a second."""
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)


def _warm_up(decode: Decode) -> None:
    """Decode one image of every format, for all that decoders import and set up late."""
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
        with suppress(ServiceError):  # a format that is not enabled
            decode(image)


def _fork(control: socket.socket, fds: Sequence[int], job: Job, children: set[int]) -> int:
    """Fork a worker with its socket and its memory. Return its id, or a negative errno."""
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


def _reap(pid: int, children: set[int]) -> int:
    """Kill a worker if it still runs, and reap it. Return its status as of `os.waitpid`, or -1 if there is no such worker."""
    if pid not in children:
        return -1
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so that the id is still its own
    children.remove(pid)
    return os.waitpid(pid, 0)[1]


def _work(control: socket.socket, connection: socket.socket, memory_fd: int, job: Job, zygote: int) -> NoReturn:
    """Be a worker until the service closes the connection."""
    status = FAULT
    try:
        control.close()
        end_with_parent(zygote)
        _serve(connection, memory_fd, job)
        status = 0
    finally:
        os._exit(status)


def _serve(connection: socket.socket, memory_fd: int, job: Job) -> None:
    """Decode one image after another, until the service closes the connection."""
    memory = mmap.mmap(memory_fd, job.shared_bytes)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a crashing decoder may print image bytes
    confine(job.memory_bytes, threads=job.threads)
    while request := connection.recv(MAX_REQUEST_BYTES):
        number, length = REQUEST.unpack_from(request)
        preprocessor = _preprocessor(request[REQUEST.size :])
        limit_cpu(job.timeout_s)
        error: ServiceError | DecodingFault | None = None
        try:
            job.pixels_in(memory, preprocessor)[:] = attempt(preprocessor.run, memory[:length])
        except (ServiceError, DecodingFault) as refused:
            error = refused
        connection.send(write_reply(Reply(number, error)))


@lru_cache(maxsize=256)
def _preprocessor(pickled: bytes) -> Preprocessor:
    preprocessor: Preprocessor = pickle.loads(pickled)  # noqa: S301  # written by the service, not by a client
    return preprocessor


if __name__ == "__main__":
    with suppress(BrokenPipeError, ConnectionResetError):  # the service has ended meanwhile
        main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])

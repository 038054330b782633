"""ExplainingProcess: the service's side of the process that explains; starts it, asks it, and ends it."""

import asyncio
import socket
import sys
from typing import Any, Self

from app.explaining import messages
from app.explaining.question import Question

CheckpointArguments = tuple[str, str | None, int | None, str]
"""Arguments of `load_checkpoint`: model, architecture, image size and activation."""

_LONGEST_MESSAGE = 64 * 2**20
"""Bytes of a part, which a PNG of the largest photograph does not reach."""


class CannotLoad(Exception):
    """The process could not load the checkpoint; the message is a traceback."""


class ExplainingProcess:
    """A process with a copy of the model, which answers one question after another."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, checkpoint: CheckpointArguments) -> Self:
        """Start the process, and wait until it has loaded the model, for seconds.

        Raises:
            CannotLoad: it says so.
            OSError, EOFError: it cannot be started, or has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = (sys.executable, "-P", "-m", "app.explaining.process_main", str(theirs.fileno()))
            quiet = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, pass_fds=[theirs.fileno()])
        started = cls(process, *await asyncio.open_connection(sock=ours, limit=_LONGEST_MESSAGE))
        try:
            fields, _, _ = await started._exchange({"checkpoint": checkpoint})
            if "error" in fields:
                raise CannotLoad(fields["error"])
        except BaseException:
            started.kill()
            raise
        return started

    async def ask(self, question: Question, pixels: bytes, photograph: bytes = b"") -> messages.Message:
        """Send a question with its pixels, and wait for the answer. A call that is cancelled ruins the process.

        Raises:
            OSError, EOFError: the process has ended.
        """
        return await self._exchange(question.as_fields(), pixels, photograph)

    def kill(self) -> None:
        """End the process at once."""
        self._writer.close()
        if self._process.returncode is None:
            self._process.kill()

    async def _exchange(self, fields: dict[str, Any], *parts: bytes) -> messages.Message:
        self._writer.write(messages.pack(fields, *parts))
        await self._writer.drain()
        return await messages.receive(self._reader)

"""ExplainingProcess: the service's side of the process that explains; starts it, asks it, and ends it."""

import asyncio
import socket
import subprocess
from typing import Any, Self

from app.explaining import messages
from app.explaining.question import Question
from app.process.child import start_child

CheckpointArguments = tuple[str, str | None, int | None, str]
"""Arguments of `load_checkpoint`: model, architecture, image size and activation."""


class CannotLoad(Exception):
    """The process could not load the checkpoint; the message is a traceback."""


class ExplainingProcess:
    """A process with a copy of the model, which answers one question after another."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        try:
            with theirs:
                process = start_child("app.explaining.process_main", theirs.fileno())
            streams = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # a process that has started ends by this
            raise
        started = cls(process, *streams)
        try:
            fields, _, _ = await started._exchange({"checkpoint": checkpoint})
            if "error" in fields:
                raise CannotLoad(fields["error"])
        except BaseException:
            started.kill()
            raise
        return started

    @property
    def ended(self) -> bool:
        """True if the process has closed its socket, or was reaped."""
        return self._reader.at_eof() or self._process.poll() is not None

    async def ask(self, question: Question, pixels: bytes, photograph: bytes = b"") -> messages.Message:
        """Send a question with its pixels, and wait for the answer. A call that is cancelled ruins the process.

        Raises:
            OSError, EOFError: the process has ended.
        """
        return await self._exchange(question.as_fields(), pixels, photograph)

    def kill(self) -> None:
        """End the process, without waiting for its end: it has the lowest priority for that too."""
        self._writer.close()
        self._process.kill()

    async def _exchange(self, fields: dict[str, Any], *parts: bytes) -> messages.Message:
        self._writer.write(messages.pack(fields, *parts))
        await self._writer.drain()
        return await messages.receive(self._reader)

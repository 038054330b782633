"""The service's side of the process that converts a checkpoint: starts it, passes on what it says, and ends it."""

import json
import logging
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from app.converting.request import ConversionRequest
from app.engines.kept_model import KeptModel
from app.errors import StartError
from app.process.child import start_child
from app.process.startup import OnStep
from model.checkpoints.description import Description

_END_S = 10.0
"""Seconds that a process takes at most to end once it has closed its socket."""


class ConversionFailed(StartError):
    """OpenVINO cannot convert or run the model; torch may."""


class NowhereToKeep(Exception):
    """The conversion could be written neither to the cache, for the reason in the message, nor to a temporary directory."""


@contextmanager
def converted(
    request: ConversionRequest,
    kept: KeptModel | None,
    key: str | None,
    *,
    on_step: OnStep,
    accept: Callable[[Description], None],
    on_uncached: Callable[[str], None],
) -> Iterator[KeptModel]:
    """Convert a checkpoint, and yield where it is kept for as long as the block lasts. Blocks, for seconds to minutes.

    Args:
        request: the checkpoint.
        kept: where to keep the conversion. Default: in a temporary directory.
        key: of the request, computed before.
        on_step: told what is done next.
        accept: called with what the checkpoint is, before the conversion; what it raises ends that.
        on_uncached: called with the reason if it could not be kept for later starts.

    Raises:
        StartError: the checkpoint cannot be served.
        ConversionFailed: OpenVINO cannot convert or run it.
        NowhereToKeep: there is no room for the result.
    """
    with ExitStack() as leaving:
        places = [] if kept is None else [str(kept.path)]
        try:
            temporary = leaving.enter_context(tempfile.TemporaryDirectory(prefix="vit-serve-", ignore_cleanup_errors=True))
            places.append(str(Path(temporary, "model")))
        except OSError:
            pass
        ours, theirs = socket.socketpair()
        leaving.enter_context(ours)  # the process ends when this is closed
        with theirs:
            process = start_child("app.converting.process_main", theirs.fileno())
        asked = {"request": request.as_json(), "key": key, "places": places, "log_level": logging.getLogger().level}
        place, reason = _Answers(process, on_step, accept).read(ours, asked)
        if kept is None:
            on_uncached("not every file of the checkpoint can be read")
        elif place != str(kept.path):
            on_uncached(reason)
        yield KeptModel(Path(place))


class _Answers:
    """Reader of the lines that the process writes until it ends."""

    def __init__(self, process: subprocess.Popen[bytes], on_step: OnStep, accept: Callable[[Description], None]) -> None:
        self._process = process
        self._on_step = on_step
        self._accept = accept
        self._step = "starting the process that converts"
        self._place: str | None = None
        self._reason = ""

    def read(self, connection: socket.socket, asked: dict[str, Any]) -> tuple[str, str]:
        """Ask, and return where the conversion is, and the reason if that is not the first place."""
        try:
            connection.sendall(json.dumps(asked).encode() + b"\n")
            with connection.makefile("rb") as lines:
                while self._place is None and (line := lines.readline()):
                    self._hear(json.loads(line))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended
        if self._place is None:
            raise self._death()
        return self._place, self._reason

    def _hear(self, said: dict[str, Any]) -> None:
        match said:
            case {"step": step}:
                self._step = step
                self._on_step(step)
            case {"log": [str(name), int(level), str(text)]}:
                logging.getLogger(name).log(level, "%s", text)
            case {"description": fields}:
                self._accept(Description.of_json(fields))
            case {"failed": str(message), "converting": converting}:
                raise (ConversionFailed if converting else StartError)(message)
            case {"bug": str(text)}:
                raise RuntimeError(f"{self._step} failed in the process that converts:\n{text}")
            case {"nowhere": str(reason)}:
                raise NowhereToKeep(reason)
            case {"kept": str(place), "reason": str(reason)}:
                self._place, self._reason = place, reason

    def _death(self) -> StartError:
        """Return what is to be said of a process that ended in the middle."""
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        hint = ": there may be too little memory for it" if status == -9 else ""
        kind = ConversionFailed if self._step.startswith("converting") else StartError
        return kind(f"{self._step} failed: the process that does it ended {how}{hint}")

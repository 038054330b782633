"""python -m app.converting.process_main FD: the process that loads a checkpoint by torch, converts it, and keeps the result.

It reads a request from the socket, writes what it does as lines of JSON, and ends when the socket to the service closes.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.converting.request import ConversionRequest, explained_checkpoint_error
from app.errors import StartError
from app.process.child import be_ended_first, take_lowest_priority
from app.process.signals import IGNORED, STOP
from app.process.startup import Step, explain
from model.checkpoints.files import CheckpointError

if TYPE_CHECKING:  # importing them takes seconds
    from app.engines.conversion import Conversion
    from model.checkpoints.checkpoint import Checkpoint


class _Service(logging.Handler):
    """The service, which is told each step, line of a log, and the outcome."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.doing: Step = "reading the configuration"

    def tell(self, **said: Any) -> None:
        """Send a line."""
        self._connection.sendall(json.dumps(said).encode() + b"\n")

    def on_step(self, step: Step) -> None:
        """Tell what is done next."""
        self.doing = step
        self.tell(step=step)

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(log=[record.name, record.levelno, record.getMessage()])


def main(descriptor: int) -> None:
    """Convert what the service asks for, and tell it the outcome."""
    for number in (*STOP, *IGNORED):  # only the service acts on them
        signal.signal(number, signal.SIG_IGN)
    be_ended_first()
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as lines:
        asked = json.loads(lines.readline())
        threading.Thread(target=_end_with_service, args=(connection,), daemon=True).start()
        service = _Service(connection)
        logging.basicConfig(handlers=[service], level=asked["log_level"])
        request = ConversionRequest.of_json(asked["request"])
        if request.low_priority:
            take_lowest_priority()
        try:
            _convert(request, asked["key"], [Path(place) for place in asked["places"]], service)
        except Exception as error:
            known = error if isinstance(error, StartError) else explain(error, service.doing)
            if known is None:
                service.tell(bug=traceback.format_exc())
            else:
                service.tell(failed=str(known), converting=service.doing.startswith("converting"))
        finally:
            sys.stderr.flush()
            os._exit(0)  # libraries take long to end, and the service does not wait for it


def _convert(request: ConversionRequest, key: str | None, places: list[Path], service: _Service) -> None:
    from app.engines.conversion import Conversion
    from app.engines.openvino import OpenVinoOptions
    from app.engines.pixel_model import engine_model
    from app.engines.select import check_dtype_of, take_cores

    threads = 1 if request.low_priority else request.threads
    take_cores(threads)
    checkpoint = _load(request, service)
    description = checkpoint.describe()
    service.tell(description=description.as_json())
    service.on_step("preparing the engine")
    check_dtype_of(description.architecture, description.served_by, request.dtype)
    model = engine_model(checkpoint, with_features=request.features)
    service.on_step("converting the model for OpenVINO")
    size = model.cpu_batch_size
    conversion = Conversion(model, OpenVinoOptions(request.run_dtype, size, threads, lone_on_all_cores=False))
    service.doing = "reading the weights"  # which are mapped, and read as late as now
    if key is not None and request.key() != key:  # the cache would have it for what it is not
        raise StartError(
            f"VIT_MODEL: {request.location.named}, or vit-serve itself, was changed while it was read; start again"
        )
    _keep(conversion, places, {"description": description.as_json(), "batch_size": size}, service)


def _load(request: ConversionRequest, service: _Service) -> "Checkpoint":
    from model.checkpoints.checkpoint import load_checkpoint

    try:
        return load_checkpoint(
            request.location,
            request.architecture,
            request.image_size,
            service.on_step,
            request.activation,  # type: ignore[arg-type]  # a setting that was checked
            request.library,  # type: ignore[arg-type]  # likewise
        )
    except CheckpointError as error:
        raise explained_checkpoint_error(error) from error


def _keep(conversion: "Conversion", places: list[Path], facts: dict[str, Any], service: _Service) -> None:
    """Write it to the first place that takes it."""
    from app.engines.kept_model import KeptModel
    from app.engines.openvino import first_reason

    reasons = []
    for place in places:
        try:
            conversion.keep(KeptModel(place), facts)
        except Exception as error:  # of OpenVINO, or of the file system
            reasons.append(first_reason(error))
            continue
        service.tell(kept=str(place), reason=next(iter(reasons), ""))
        return
    service.tell(nowhere=next(iter(reasons), "there is no temporary directory"))


def _end_with_service(connection: socket.socket) -> None:
    """Wait until the service closes the connection, and end this process at once."""
    with suppress(OSError):
        while connection.recv(1):
            pass
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))

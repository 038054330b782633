"""attempt: decode one image, and tell the image's fault from the service's; used by worker processes and threads alike."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.errors import ImageTooLarge, InternalError, ServiceError

_ROOT = str(Path(__file__).parents[3])

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class DecodingFault(Exception):
    """An exception in the service's own code; the message is its class and place, and nothing of the image."""


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that handles one image.

    Raises:
        ServiceError: a reason to refuse the image; `ImageTooLarge` when memory runs out.
        DecodingFault: any other exception.
    """
    try:
        return function(*args, **kwargs)
    except ServiceError:
        raise
    except MemoryError:
        raise ImageTooLarge("The image does not fit into memory.") from None
    except Exception as error:
        raise DecodingFault(_place(error)) from None


def reported(fault: DecodingFault) -> InternalError:
    """Log a fault, and return the error for the client."""
    _log.error("an image could not be decoded through a fault of the service, please report it: %s", fault)
    return InternalError("The service failed on this image; what happened has been logged.")


def _place(error: Exception) -> str:
    """Return the class of an exception and the last line of our code that it passed; its text might quote the image."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename.startswith(_ROOT)), frames[-1])
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"

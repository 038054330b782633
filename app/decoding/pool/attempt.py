"""attempt: one image decoded, or the one error that tells whose fault it was; used by worker processes and threads alike."""

import logging
import traceback
from pathlib import Path

from app.decoding import Decode
from app.errors import ImageTooLarge, InternalError, ServiceError
from app.pixels import Pixels

_OURS = str(Path(__file__).parents[3])

_log = logging.getLogger(__name__)


class DecodingFault(Exception):
    """An error of the service's own while it decoded; the message is an exception's class and place, nothing of the image."""


def attempt(decode: Decode, image_bytes: bytes) -> Pixels:
    """Decode one image.

    Raises:
        ServiceError: what `decode` refuses, or `ImageTooLarge` when memory runs out.
        DecodingFault: anything else.
    """
    try:
        return decode(image_bytes)
    except ServiceError:
        raise
    except MemoryError:
        raise ImageTooLarge("The image does not fit into memory.") from None
    except Exception as error:
        raise DecodingFault(_place(error)) from None


def reported(fault: DecodingFault) -> InternalError:
    """Log a fault, and return the error that its client is answered with."""
    _log.error("an image could not be decoded through a fault of the service, please report it: %s", fault)
    return InternalError("The service failed on this image; what happened has been logged.")


def _place(error: Exception) -> str:
    """Return the exception's class and the last line of our own code that it passed; its text might quote the image."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename.startswith(_OURS)), frames[-1])
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"

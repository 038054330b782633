"""Open files that others have put somewhere: regular ones only, without letting a pipe or a slow disk stop the process.

A path can name a pipe, whose opening waits for a writer, or a device without an end, or lie on a disk that hangs. Links are
followed: the cache of a hub consists of them.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

_BLOCK_BYTES = 1 << 20


class FileError(Exception):
    """A file that cannot be used; the message tells why, without the name of the file."""


class MissingFile(FileError):
    """Missing file: nothing is at the path."""


def exists(path: Path) -> bool:
    """Return True if there is anything at the path.

    Raises:
        FileError: that cannot be told, for example because a directory on the way may not be entered.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _explained(error) from error
    return True


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        MissingFile: there is none.
        FileError: it is not a regular file, may not be read, or is larger than `max_bytes`.
    """
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise _explained(error) from error
    if len(content) > max_bytes:
        raise FileError(f"it is larger than {max_bytes} bytes")
    return content


def read_ahead(path: Path) -> None:
    """Read a regular file into the page cache, for libraries that map files into memory and hold the GIL as they do.

    So only this thread waits for the disk, and a disk that fails raises an error here instead of ending the process (SIGBUS).

    Raises:
        MissingFile: there is none.
        FileError: it is not a regular file, or cannot be read.
    """
    block = bytearray(_BLOCK_BYTES)
    try:
        with open_regular(path) as file:
            while file.readinto(block):
                pass
    except (OSError, ValueError) as error:
        raise _explained(error) from error


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file.

    Raises:
        FileError: it is not a regular file.
        OSError, ValueError: it cannot be opened.
    """
    # non-blocking, so that a pipe without a writer is opened at once, and then refused
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise FileError("it is no regular file")


def _explained(error: OSError | ValueError) -> FileError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MissingFile(error.strerror)
    reason = error.strerror if isinstance(error, OSError) else None
    return FileError(reason or str(error))  # a path with a NUL character is a ValueError

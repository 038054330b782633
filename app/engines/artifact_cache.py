"""Files that are made once and kept on disk for the next start: whole and unchanged, or not at all."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.checkpoints.tensors.regular_file import FileError, exists, open_regular, read_file

_DIGESTS = "sha256"
"""The file with the digests of all others, in the form of sha256sum."""

_MAX_DIGESTS_BYTES = 4096
_UNFINISHED = "tmp"
"""First letters of directories that are not complete yet."""


class KeptDirectory:
    """A directory of files, whose name says what they were made from.

    It is written under another name and then renamed, so that nobody sees half of it. Whoever writes holds a lock that ends
    with its process: what is unfinished while nobody holds it was left by a process that was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self) -> bool:
        """Tell whether it is there.

        Raises:
            FileError, OSError: it cannot be read, or its files are not as they were written.
        """
        if not exists(self.path):
            return False
        if read_file(self.path / _DIGESTS, _MAX_DIGESTS_BYTES) != _digests(self.path):
            raise FileError("it is not as it was written")
        return True

    def keep(self, write: Callable[[Path], None]) -> None:
        """Have it written, in place of what is there now.

        Raises:
            FileError, OSError: that is not possible. `write` may raise others.
        """
        beside = self.path.parent
        beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            self._lock(fcntl.LOCK_SH),
            tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=beside, ignore_cleanup_errors=True) as temporary,
        ):
            new = Path(temporary, "new")
            new.mkdir()
            write(new)
            (new / _DIGESTS).write_bytes(_digests(new))
            with suppress(FileNotFoundError):
                os.rename(self.path, Path(temporary, "old"))
            os.rename(new, self.path)

    def sweep(self) -> None:
        """Remove what processes that were killed have left beside it, unless another one is writing there now."""
        with suppress(OSError), self._lock(fcntl.LOCK_EX):
            for unfinished in self.path.parent.glob(f"{_UNFINISHED}*/"):  # directories alone: a pipe would be waited for
                shutil.rmtree(unfinished, ignore_errors=True)

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(directory, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # there are no locks on this file system: write, but never sweep
                if kind == fcntl.LOCK_EX:
                    raise
            yield
        finally:
            os.close(directory)


def _digests(directory: Path) -> bytes:
    lines = []
    for file in sorted(directory.iterdir()):
        if file.name != _DIGESTS:
            with open_regular(file) as opened:
                lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file.name}\n")
    return "".join(lines).encode()

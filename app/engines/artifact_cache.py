"""Artifacts that are made once and cached on disk for the next start, with atomic writes and digests."""

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
"""File with the digests of all others, in the format of sha256sum."""

_MAX_DIGESTS_BYTES = 4096
_TEMPORARY = "tmp"
"""Prefix of the names of unfinished directories."""


class CachedDirectory:
    """A directory of files, named after a fingerprint of its source.

    It is written under a temporary name and renamed, so a reader never sees half of it. A writer holds a shared file lock,
    which the kernel releases when the process ends: temporary directories without a lock holder belong to a killed process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def verify(self) -> bool:
        """Return False if the directory does not exist, True if it is intact.

        Raises:
            FileError, OSError: it cannot be read, or does not match its digests.
        """
        if not exists(self.path):
            return False
        if read_file(self.path / _DIGESTS, _MAX_DIGESTS_BYTES) != _digests(self.path):
            raise FileError("its files do not match their digests")
        return True

    def replace(self, write: Callable[[Path], None]) -> None:
        """Call `write` with an empty directory, then put that directory in place of the current one.

        Raises:
            FileError, OSError: writing or renaming failed. Exceptions of `write` pass through.
        """
        parent = self.path.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            self._lock(fcntl.LOCK_SH),
            tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=parent, ignore_cleanup_errors=True) as temporary,
        ):
            new = Path(temporary, "new")
            new.mkdir()
            write(new)
            (new / _DIGESTS).write_bytes(_digests(new))
            with suppress(FileNotFoundError):
                os.rename(self.path, Path(temporary, "old"))
            os.rename(new, self.path)

    def remove_stale(self) -> None:
        """Remove temporary directories that killed processes left, unless another process is writing now."""
        with suppress(OSError), self._lock(fcntl.LOCK_EX):
            for stale in self.path.parent.glob(f"{_TEMPORARY}*/"):  # directories only: opening a pipe would block
                shutil.rmtree(stale, ignore_errors=True)

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(directory, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # the file system has no locks: writing is still safe, removing is not
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

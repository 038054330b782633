"""CachedDirectory: atomic writes, digests, and removal of what killed processes leave."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.engines.artifact_cache import CachedDirectory
from model.checkpoints.tensors.regular_file import FileError
from tests.support.models import ROOT

WRITER = """
import sys
from pathlib import Path
from app.engines.artifact_cache import CachedDirectory

def write(directory):
    (directory / "half").write_text("of it")
    print("writing", flush=True)
    sys.stdin.read()

CachedDirectory(Path(sys.argv[1])).replace(write)
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing; it finishes when its stdin closes."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        try:
            yield process
        finally:
            process.kill()


def write(directory: Path) -> None:
    (directory / "weights").write_bytes(b"12345")
    (directory / "graph").write_bytes(b"67")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.fixture
def cached(tmp_path: Path) -> CachedDirectory:
    """A directory that has been written."""
    cached = CachedDirectory(tmp_path / "below" / "made")
    cached.replace(write)
    return cached


def siblings(cached: CachedDirectory) -> list[str]:
    return sorted(path.name for path in cached.path.parent.iterdir())


def test_written_directory_is_verified(cached: CachedDirectory) -> None:
    assert (cached.path / "weights").read_bytes() == b"12345"
    assert siblings(cached) == ["made"]
    assert cached.path.parent.stat().st_mode & 0o777 == 0o700
    assert cached.verify()
    assert not CachedDirectory(cached.path.with_name("another")).verify()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b"1234"), id="cut"),
        pytest.param(lambda file: file.write_bytes(b"1234x"), id="other-bytes"),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.unlink(), id="gone"),
        pytest.param(lambda file: (file.unlink(), file.mkdir()), id="directory"),
        pytest.param(pipe, id="pipe"),
        pytest.param(lambda file: (file.unlink(), file.symlink_to(file)), id="loop"),
    ],
)
@pytest.mark.parametrize("name", ["weights", "sha256"])
def test_damaged_directory_is_refused(cached: CachedDirectory, name: str, damage: Callable[[Path], object]) -> None:
    damage(cached.path / name)
    with pytest.raises((FileError, OSError)):
        cached.verify()
    cached.replace(write)
    assert cached.verify()


def test_added_file_counts_as_damage(cached: CachedDirectory) -> None:
    (cached.path / "more").touch()
    with pytest.raises(FileError, match="its files do not match their digests"):
        cached.verify()


def test_pipe_as_directory_is_replaced(cached: CachedDirectory) -> None:
    cached.path.rename(cached.path.with_name("moved"))
    os.mkfifo(cached.path)
    cached.replace(write)
    assert cached.verify()


def test_failed_write_keeps_old_directory(cached: CachedDirectory) -> None:
    def fails(directory: Path) -> None:
        write(directory)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cached.replace(fails)
    assert cached.verify()
    assert siblings(cached) == ["made"]


def test_stale_directories_are_removed(cached: CachedDirectory) -> None:
    with writer(cached.path) as process:
        process.send_signal(signal.SIGKILL)
    assert len(siblings(cached)) == 2
    os.mkfifo(cached.path.with_name("tmp-pipe"))
    cached.remove_stale()
    assert siblings(cached) == ["made", "tmp-pipe"]


def test_directory_being_written_is_not_stale(cached: CachedDirectory) -> None:
    with writer(cached.path) as killed:
        killed.send_signal(signal.SIGKILL)
    with writer(cached.path) as process:
        cached.remove_stale()
        CachedDirectory(cached.path.with_name("another")).replace(write)
        process.communicate()
        assert process.returncode == 0
    assert cached.verify()
    assert (cached.path / "half").read_text() == "of it"
    cached.remove_stale()
    assert siblings(cached) == ["another", "made"]


def test_remove_stale_without_directory(tmp_path: Path) -> None:
    CachedDirectory(tmp_path / "none" / "made").remove_stale()
    assert not list(tmp_path.iterdir())

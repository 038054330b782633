"""Files that are kept for the next start: written whole, checked when they are found, and swept up after a killed process."""

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
    """A process that is in the middle of writing, and goes on when its input ends."""
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
def kept(tmp_path: Path) -> CachedDirectory:
    """A directory that was kept."""
    kept = CachedDirectory(tmp_path / "below" / "made")
    kept.replace(write)
    return kept


def beside(kept: CachedDirectory) -> list[str]:
    return sorted(path.name for path in kept.path.parent.iterdir())


def test_kept_directory_is_found_again(kept: CachedDirectory) -> None:
    assert (kept.path / "weights").read_bytes() == b"12345"
    assert beside(kept) == ["made"]
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert kept.verify()
    assert not CachedDirectory(kept.path.with_name("another")).verify()


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
def test_damaged_directory_is_refused(kept: CachedDirectory, name: str, damage: Callable[[Path], object]) -> None:
    damage(kept.path / name)
    with pytest.raises((FileError, OSError)):
        kept.verify()
    kept.replace(write)
    assert kept.verify()


def test_added_file_counts_as_damage(kept: CachedDirectory) -> None:
    (kept.path / "more").touch()
    with pytest.raises(FileError, match="its files do not match their digests"):
        kept.verify()


def test_pipe_in_its_place_is_replaced(kept: CachedDirectory) -> None:
    kept.path.rename(kept.path.with_name("moved"))
    os.mkfifo(kept.path)
    kept.replace(write)
    assert kept.verify()


def test_failed_write_leaves_nothing(kept: CachedDirectory) -> None:
    def fails(directory: Path) -> None:
        write(directory)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        kept.replace(fails)
    assert kept.verify()
    assert beside(kept) == ["made"]


def test_leftovers_of_a_killed_process_go(kept: CachedDirectory) -> None:
    with writer(kept.path) as process:
        process.send_signal(signal.SIGKILL)
    assert len(beside(kept)) == 2
    os.mkfifo(kept.path.with_name("tmp-pipe"))
    kept.remove_stale()
    assert beside(kept) == ["made", "tmp-pipe"]


def test_sweep_spares_a_process_that_writes(kept: CachedDirectory) -> None:
    with writer(kept.path) as killed:
        killed.send_signal(signal.SIGKILL)
    with writer(kept.path) as process:
        kept.remove_stale()
        CachedDirectory(kept.path.with_name("another")).replace(write)
        process.communicate()
        assert process.returncode == 0
    assert kept.verify()
    assert (kept.path / "half").read_text() == "of it"
    kept.remove_stale()
    assert beside(kept) == ["another", "made"]


def test_sweep_without_a_directory(tmp_path: Path) -> None:
    CachedDirectory(tmp_path / "none" / "made").remove_stale()
    assert not list(tmp_path.iterdir())

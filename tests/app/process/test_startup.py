"""Startup: a slow start logs its step; a failed one ends in one sentence, or is called a bug."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import StartError
from app.process.startup import BUG, explain, watched_start
from tests.support.models import ROOT, UNPRIVILEGED
from tests.support.server import Server


class SlowSteps(logging.Handler):
    """Steps logged as slow, and an event when there are enough of them."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.full = threading.Event()
        self._enough = enough

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, dict)
        self.steps.append(record.msg["waits_for"])
        if len(self.steps) == self._enough:
            self.full.set()


def test_slow_start_says_what_it_waits_for() -> None:
    slow = SlowSteps(2)
    logging.getLogger("app.process.startup").addHandler(slow)
    try:
        with watched_start(slow_s=0.01) as on_step:
            on_step("reading the weights")
            assert slow.full.wait(60)
    finally:
        logging.getLogger("app.process.startup").removeHandler(slow)
    assert set(slow.steps) == {"reading the weights"}


def test_quick_start_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with watched_start() as on_step:
        on_step("reading the weights")
    assert caplog.records == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 43213144 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=lambda error: str(error)[:30] or "MemoryError",
)
def test_too_little_memory_is_one_sentence(error: Exception) -> None:
    expected = r"^there is too little memory for reading the weights: give the process more"
    with pytest.raises(StartError, match=expected), watched_start() as on_step:
        on_step("reading the weights")
        try:
            raise error
        except Exception as cause:
            raise ValueError("a library wraps it") from cause


def test_other_shortages_are_one_sentence() -> None:
    assert "may start no more threads" in str(explain(RuntimeError("can't start new thread"), "warming up"))
    disk_is_full = explain(OSError(errno.ENOSPC, "No space left on device", "/cache/x"), "warming up")
    assert str(disk_is_full) == "warming up failed: No space left on device: /cache/x"


def test_bug_is_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), watched_start():
        _ = 1 / 0


def test_sentence_is_one_line_of_some_length() -> None:
    assert str(StartError("a\n  b\r\n\0c\u2028d")) == "a   b c d"
    assert len(str(StartError("x" * 10_000))) < 2100


VIT_SERVE = str(Path(sys.executable).parent / "vit-serve")


def failed_start(*prefix: str, **variables: object) -> str:
    """Return the reason of a start that fails with status 1 and without a stack trace."""
    server = Server([*prefix, VIT_SERVE, "serve"], **{"engine": "torch", **variables})
    try:
        assert server.wait() == 1
        with pytest.raises(AssertionError):
            server.wait_for_log("nothing more")
    finally:
        server.process.kill()
    assert not any("exception" in record or "Traceback" in str(record["event"]) for record in server.log), server.log
    critical = [record.get("reason", "") for record in server.log if record.get("level") == "critical"]
    told = [record["event"] for record in server.log if str(record["event"]).startswith("vit-serve: ")]
    return str((critical or told)[0]).strip()


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_long_path_ends_the_start() -> None:
    assert failed_start(model="x" * 300) == f"VIT_MODEL: {'x' * 300} cannot be read: File name too long"


def test_locked_folder_ends_the_start(copy: Path) -> None:
    copy.parent.chmod(0)
    try:
        reason = failed_start(*UNPRIVILEGED, model=copy)
    finally:
        copy.parent.chmod(0o700)
    assert reason == f"VIT_MODEL: {copy} cannot be read: Permission denied"


@pytest.mark.parametrize("limit_mib", [560, 800, 1100])
def test_too_little_memory_ends_the_start(limit_mib: int) -> None:
    assert "too little memory" in failed_start("prlimit", f"--as={limit_mib << 20}", max_batch_size=1024)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_unknown_address_ends_the_start(tiny_checkpoint: Path, host: str) -> None:
    server = Server(model=tiny_checkpoint, host=host)
    assert server.wait() == 1
    with pytest.raises(AssertionError):
        server.wait_for_log("nothing more")
    assert not any("Traceback" in str(record) for record in server.log)


def test_unforeseen_error_is_called_a_bug(tiny_checkpoint: Path) -> None:
    server = Server([sys.executable, "-m", "tests.support.faulty_server", "start"], model=tiny_checkpoint)
    record = server.wait_for_log("cannot start")
    assert (record["reason"], server.wait()) == (BUG, 1)
    assert "ZeroDivisionError" in record["exception"]


def test_unknown_variable_is_warned_of(tiny_checkpoint: Path) -> None:
    server = Server(model=tiny_checkpoint / "none", max_batchsize=4)
    assert server.wait_for_log("VIT_MAX_BATCHSIZE is not a setting")["level"] == "warning"
    assert server.wait() == 1


def vit_serve(*arguments: object, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, VIT_SERVE, *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "x" * 300),
        ("info", "~nobody-has-this-name"),
        ("info", ""),
        ("classify", "examples/images", "--model", "x" * 300),
        ("evaluate", "tests", "--model", "/dev/null"),
        ("train", "examples/images", "/dev/null/output"),
        ("train", "weights", "/dev/full", "--start", "x" * 300),
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[-1][-10:]}",
)
def test_commands_end_in_one_sentence(arguments: tuple[str, ...]) -> None:
    ended = vit_serve(*arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("vit-serve: ")
    assert ended.stderr.count("\n") == 1, ended.stderr


def test_warnings_do_not_mix_with_the_output(tiny_checkpoint: Path) -> None:
    ended = vit_serve("info", tiny_checkpoint, "--json", VIT_COLOUR="red")
    assert json.loads(ended.stdout)["name"] == "tiny-dinov2"
    assert "VIT_COLOUR is not a setting" in ended.stderr


def test_too_little_memory_ends_info() -> None:
    ended = vit_serve("info", prefix=("prlimit", f"--as={600 << 20}"))
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "too little memory" in ended.stderr


FAULTS: list[Callable[[Path], object]] = [Path.mkdir, os.mkfifo, Path.touch]


@pytest.mark.parametrize("put", FAULTS, ids=lambda put: put.__name__)
def test_odd_file_of_keys_ends_the_start(tiny_checkpoint: Path, tmp_path: Path, put: Callable[[Path], object]) -> None:
    put(tmp_path / "keys")
    reason = failed_start(model=tiny_checkpoint, api_keys_file=tmp_path / "keys")
    assert reason.startswith(f"vit-serve: VIT_API_KEYS_FILE: {tmp_path / 'keys'} cannot be used: ")

"""QueuedStderr: slow, stopped and closed readers, full disks, forks, and process exit."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.process.logs import configure_logging
from app.process.stderr import QueuedStderr

OpenPipe = Callable[..., "Pipe"]
LogTo = Callable[[QueuedStderr], None]

TIMEOUT_S = 60


@dataclass
class Pipe:
    """A small pipe that a stream writes to, and a test reads or closes."""

    reading: int
    stream: QueuedStderr

    def read_to_end(self) -> list[str]:
        """Finish the stream, and return all its lines."""
        received: list[bytes] = []
        finished = threading.Thread(target=self._finish)
        finished.start()
        while data := os.read(self.reading, 65_536):
            received.append(data)
        finished.join()
        return b"".join(received).decode().splitlines()

    def _finish(self) -> None:
        assert self.stream.finish(TIMEOUT_S)
        os.close(self.stream.fileno())


@pytest.fixture
def open_pipe() -> Iterator[Callable[..., Pipe]]:
    pipes: list[Pipe] = []

    def open_pipe(**options: Any) -> Pipe:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        pipes.append(Pipe(reading, QueuedStderr(writing, **options)))
        return pipes[-1]

    yield open_pipe
    for pipe in pipes:
        with suppress(OSError):
            os.close(pipe.reading)
        with suppress(OSError):
            os.fstat(pipe.stream.fileno())
            pipe._finish()


@pytest.fixture
def logging_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogTo]:
    """A function that redirects the log to a stream until the test ends."""

    def log_to(stream: QueuedStderr) -> None:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "json")
        monkeypatch.undo()

    yield log_to
    configure_logging("info", "json")


def write_lines(stream: QueuedStderr, count: int) -> None:
    for number in range(count):
        print(number, file=stream)


def test_stopped_reader_blocks_no_writer(open_pipe: OpenPipe, logging_to: LogTo) -> None:
    pipe = open_pipe(max_lines=100)
    logging_to(pipe.stream)
    write_lines(pipe.stream, 20_000)
    lines = pipe.read_to_end()
    numbers = [int(line) for line in lines if line.isdigit()]
    told = [json.loads(line) for line in lines if not line.isdigit()]
    assert numbers == sorted(numbers)
    assert 0 < pipe.stream.dropped_lines == 20_000 - len(numbers)
    assert sum(line["lines"] for line in told) == pipe.stream.dropped_lines
    assert {line["level"] for line in told} == {"warning"}


def test_finish_times_out_on_a_stopped_reader(open_pipe: OpenPipe) -> None:
    stream = open_pipe().stream
    write_lines(stream, 4000)
    assert not stream.finish(0.05)


@pytest.mark.parametrize("blocking", [True, False])
def test_slow_reader_gets_lines_in_order(open_pipe: OpenPipe, blocking: bool) -> None:
    pipe = open_pipe()
    os.set_blocking(pipe.stream.fileno(), blocking)  # another process that shares the pipe may set O_NONBLOCK
    write_lines(pipe.stream, 4000)
    received = b""
    while received.count(b"\n") < 4000:
        received += os.read(pipe.reading, 100)
    assert received.split() == [b"%d" % number for number in range(4000)]
    assert pipe.stream.dropped_lines == 0


def test_lines_of_threads_are_not_mixed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        stream = QueuedStderr(file.fileno(), max_lines=100_000)

        def write_words() -> None:
            for _ in range(500):
                print("one", "line", file=stream)

        writers = [threading.Thread(target=write_words) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert stream.finish(TIMEOUT_S)
    assert set((tmp_path / "log").read_text().splitlines()) == {"one line"}


def test_full_disk_drops_lines(tmp_path: Path, logging_to: LogTo) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = QueuedStderr(fd)
    logging_to(stream)
    write_lines(stream, 7)
    written = threading.Event()
    stream._queue.put(written)
    assert written.wait(TIMEOUT_S)
    assert stream.dropped_lines == 7
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), fd)  # space again
    print("after", file=stream)
    assert stream.finish(TIMEOUT_S)
    os.close(fd)
    after, told = (tmp_path / "log").read_text().splitlines()
    assert (after, json.loads(told)["lines"]) == ("after", 7)


def test_closed_pipe_drops_lines(open_pipe: OpenPipe, logging_to: LogTo) -> None:
    pipe = open_pipe()
    logging_to(pipe.stream)
    os.close(pipe.reading)
    write_lines(pipe.stream, 7)
    assert pipe.stream.finish(TIMEOUT_S)
    assert pipe.stream.dropped_lines == 7


def test_flush_writes_an_unfinished_line(open_pipe: OpenPipe) -> None:
    pipe = open_pipe()
    pipe.stream.write("50 %")
    pipe.stream.flush()
    assert os.read(pipe.reading, 100) == b"50 %"


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    code = f"import os, sys, warnings\nfrom app.process.stderr import queue_stderr\nqueue_stderr()\n{code}"
    return subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False, **options
    )


def test_python_output_is_written_at_exit() -> None:
    ended = run("warnings.warn('odd')\nprint('printed', file=sys.stderr)\nraise SystemExit('a last word')")
    assert ended.returncode == 1
    assert [word in ended.stderr for word in ("UserWarning: odd", "printed\n", "a last word")] == [True] * 3


def test_forked_process_writes_directly() -> None:
    ended = run("if os.fork() == 0:\n    print('child', file=sys.stderr)\n    os._exit(0)\nos.wait()")
    assert (ended.returncode, ended.stderr) == (0, "child\n")


def test_closed_files_are_replaced() -> None:
    code = "import os, sys, app.process.stderr as s; s.queue_stderr(); print('x', file=sys.stderr); print(os.open('/', 0))"
    shell = ["sh", "-c", 'exec "$0" -c "$1" <&- 2>&-', sys.executable, code]
    ended = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
    assert int(ended.stdout) > 2

"""QueuedStderr: readers that are slow, gone or full, and the ends of processes."""

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

PATIENCE_S = 60


@dataclass
class Pipe:
    """A small pipe; a stream writes to it, and a test may read from it, or close it."""

    reading: int
    stream: QueuedStderr

    def read_to_end(self) -> list[str]:
        """All lines, once the stream has written what is queued."""
        received: list[bytes] = []
        finished = threading.Thread(target=self._finish)
        finished.start()
        while data := os.read(self.reading, 65_536):
            received.append(data)
        finished.join()
        return b"".join(received).decode().splitlines()

    def _finish(self) -> None:
        assert self.stream.finish(PATIENCE_S)
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
    """Has all that is logged written to a stream, until the test ends."""

    def log_to(stream: QueuedStderr) -> None:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "json")
        monkeypatch.undo()

    yield log_to
    configure_logging("info", "json")


def write_lines(stream: QueuedStderr, count: int) -> None:
    for number in range(count):
        print(number, file=stream)


def test_a_reader_that_stops_blocks_no_writer(open_pipe: OpenPipe, logging_to: LogTo) -> None:
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


def test_the_end_does_not_wait_for_a_stopped_reader(open_pipe: OpenPipe) -> None:
    stream = open_pipe().stream
    write_lines(stream, 4000)
    assert not stream.finish(0.05)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_every_line_in_order(open_pipe: OpenPipe, blocking: bool) -> None:
    pipe = open_pipe()
    os.set_blocking(pipe.stream.fileno(), blocking)  # whoever shares a pipe may change that
    write_lines(pipe.stream, 4000)
    received = b""
    while received.count(b"\n") < 4000:
        received += os.read(pipe.reading, 100)
    assert received.split() == [b"%d" % number for number in range(4000)]
    assert pipe.stream.dropped_lines == 0


def test_lines_of_many_threads_are_not_mixed(tmp_path: Path) -> None:
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
        assert stream.finish(PATIENCE_S)
    assert set((tmp_path / "log").read_text().splitlines()) == {"one line"}


def test_a_full_disk_costs_lines_and_no_more(tmp_path: Path, logging_to: LogTo) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = QueuedStderr(fd)
    logging_to(stream)
    write_lines(stream, 7)
    written = threading.Event()
    stream._queue.put(written)
    assert written.wait(PATIENCE_S)
    assert stream.dropped_lines == 7
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), fd)  # there is room again
    print("after", file=stream)
    assert stream.finish(PATIENCE_S)
    os.close(fd)
    after, told = (tmp_path / "log").read_text().splitlines()
    assert (after, json.loads(told)["lines"]) == ("after", 7)


def test_a_reader_that_has_gone_costs_lines_and_no_more(open_pipe: OpenPipe, logging_to: LogTo) -> None:
    pipe = open_pipe()
    logging_to(pipe.stream)
    os.close(pipe.reading)
    write_lines(pipe.stream, 7)
    assert pipe.stream.finish(PATIENCE_S)
    assert pipe.stream.dropped_lines == 7


def test_text_that_is_no_line_yet_is_written_at_a_flush(open_pipe: OpenPipe) -> None:
    pipe = open_pipe()
    pipe.stream.write("50 %")
    pipe.stream.flush()
    assert os.read(pipe.reading, 100) == b"50 %"


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    code = f"import os, sys, warnings\nfrom app.process.stderr import queue_stderr\nqueue_stderr()\n{code}"
    return subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False, **options
    )


def test_what_python_itself_says_is_queued_and_written_at_the_end() -> None:
    ended = run("warnings.warn('odd')\nprint('printed', file=sys.stderr)\nraise SystemExit('a last word')")
    assert ended.returncode == 1
    assert [word in ended.stderr for word in ("UserWarning: odd", "printed\n", "a last word")] == [True] * 3


def test_a_forked_process_writes_without_the_thread() -> None:
    ended = run("if os.fork() == 0:\n    print('child', file=sys.stderr)\n    os._exit(0)\nos.wait()")
    assert (ended.returncode, ended.stderr) == (0, "child\n")


def test_closed_standard_files_go_to_no_socket() -> None:
    code = "import os, sys, app.process.stderr as s; s.queue_stderr(); print('x', file=sys.stderr); print(os.open('/', 0))"
    shell = ["sh", "-c", 'exec "$0" -c "$1" <&- 2>&-', sys.executable, code]
    ended = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True)
    assert int(ended.stdout) > 2

"""The process that explains, as it really is."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import InferenceFailed, InternalError
from app.explaining.keeper import ProcessKeeper
from app.explaining.process import CannotLoad, CheckpointArguments, ExplainingProcess
from app.explaining.question import METHODS, Method, Overlay, Question
from model.checkpoints.checkpoint import save_checkpoint
from model.relevance import RecordedModel
from tests.support.models import TINY_LABELS, TINY_PREPROCESSING, tiny_model

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8).tobytes()


def arguments(checkpoint: Path) -> CheckpointArguments:
    return (str(checkpoint), None, None, "softmax")


@asynccontextmanager
async def started(checkpoint: Path) -> AsyncIterator[tuple[ExplainingProcess, int]]:
    """Start a process, and yield it with its id."""
    process = await ExplainingProcess.start(arguments(checkpoint))
    try:
        yield process, process._process.pid
    finally:
        process.kill()
        await asyncio.to_thread(process._process.wait, 60)


def read(pid: int, name: str) -> bytes:
    """Read what the kernel says of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def question(method: Method = "relevance", class_index: int | None = None) -> Question:
    return Question(method, class_index, None)


async def test_answers_equal_the_models(tiny_checkpoint: Path) -> None:
    pixels = torch.frombuffer(bytearray(PIXELS), dtype=torch.uint8).view(1, 3, 28, 28)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (TINY_PREPROCESSING.mean, TINY_PREPROCESSING.std))
    image = (pixels / 255 - mean) / std
    with torch.no_grad():
        logits = tiny_model()(image)[0]
    async with started(tiny_checkpoint) as (process, _):
        for method in METHODS:
            for index in (None, 0, 9):
                explained = int(logits.argmax()) if index is None else index
                recording = RecordedModel(tiny_model()).run(image)
                found = recording.relevance(explained) if method == "relevance" else recording.rollout()
                fields, grid, overlay = await process.ask(question(method, index), PIXELS)
                assert fields["class_index"] == explained
                assert fields["probability"] == pytest.approx(float(logits.softmax(0)[explained]), rel=1e-4)
                assert fields["seconds"] > 0
                expected = (found / found.max()).numpy()
                np.testing.assert_allclose(np.frombuffer(grid, np.float32), expected, rtol=1e-3, atol=1e-5)
                assert overlay == b""
        drawn = Question("rollout", None, Overlay((8, 6), (0, 0, 8, 6), 0.5))
        assert (await process.ask(drawn, PIXELS, bytes(3 * 8 * 6)))[2].startswith(b"\x89PNG")


async def test_bad_question_ends_nothing(tiny_checkpoint: Path) -> None:
    async with started(tiny_checkpoint) as (process, _):
        fields, *_ = await process.ask(question(), b"too few")
        assert "Traceback" in fields["error"]
        assert "class_index" in (await process.ask(question(), PIXELS))[0]


async def test_priority_is_the_lowest(tiny_checkpoint: Path) -> None:
    async with started(tiny_checkpoint) as (process, pid):
        await process.ask(question(), PIXELS)
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        assert len(threads) >= 1
        for thread in threads:
            assert (os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)) == (os.SCHED_IDLE, 19)
        assert read(pid, "oom_score_adj") == b"1000\n"


async def test_only_the_service_ends_it(tiny_checkpoint: Path) -> None:
    async with started(tiny_checkpoint) as (process, pid):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
        assert "class_index" in (await process.ask(question(), PIXELS))[0]
        assert not process.ended


async def test_ends_with_the_socket(tiny_checkpoint: Path) -> None:
    async with started(tiny_checkpoint) as (process, _):
        process._writer.close()  # as if the service had died
        assert await asyncio.to_thread(process._process.wait, 60) == 0


async def test_gets_no_settings(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_API_KEYS", "secret")
    async with started(tiny_checkpoint) as (_, pid):
        environment = read(pid, "environ")
    assert b"PATH=" in environment
    assert b"VIT_" not in environment


async def test_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotLoad, match="CheckpointError"):
        await ExplainingProcess.start(arguments(tmp_path / "nowhere"))


async def test_infinite_outputs_are_a_failure(tmp_path: Path) -> None:
    model = tiny_model()
    model.head.weight.fill_(3e38)  # type: ignore[operator]  # of a Linear; each is finite, their sums are not
    save_checkpoint(tmp_path, model, TINY_PREPROCESSING, TINY_LABELS, torch.float32)
    keeper = keeper_of(tmp_path, [])
    try:
        with pytest.raises(InferenceFailed, match="not finite"):
            await keeper.ask(question(), PIXELS, b"")
    finally:
        keeper.close()


def keeper_of(checkpoint: Path, processes: list[ExplainingProcess]) -> ProcessKeeper:
    async def start() -> ExplainingProcess:
        processes.append(await ExplainingProcess.start(arguments(checkpoint)))
        return processes[-1]

    return ProcessKeeper(start, lambda: None)


async def test_killed_process_is_replaced(tiny_checkpoint: Path) -> None:
    processes: list[ExplainingProcess] = []
    keeper = keeper_of(tiny_checkpoint, processes)
    try:
        expected = await keeper.ask(question(), PIXELS, b"")
        os.kill(processes[0]._process.pid, signal.SIGKILL)  # while it is idle
        await asyncio.to_thread(processes[0]._process.wait, 60)
        assert (await keeper.ask(question(), PIXELS, b""))[1] == expected[1]

        os.kill(processes[1]._process.pid, signal.SIGSTOP)
        running = asyncio.create_task(keeper.ask(question(), PIXELS, b""))
        while keeper._run is None or keeper._run.done():  # noqa: ASYNC110 - the turn sets no Event
            await asyncio.sleep(0.01)
        os.kill(processes[1]._process.pid, signal.SIGKILL)
        with pytest.raises(InternalError):
            await running
        while (pause_s := keeper._backoff.remaining_s) > 0:  # noqa: ASYNC110 - the event loop may wake a moment early
            await asyncio.sleep(pause_s)
        assert (await keeper.ask(question(), PIXELS, b""))[1] == expected[1]
        assert len(processes) == 3
    finally:
        keeper.close()
    assert await asyncio.to_thread(processes[2]._process.wait, 60) == -signal.SIGKILL

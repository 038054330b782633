"""Workers killed at every step of a request: the pool recovers completely."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.decoding import Decoded, Preprocessor
from app.decoding.pool.processes import ProcessDecoder
from app.decoding.pool.worker import State, Worker
from app.decoding.pool.zygote import WorkerProcess, Zygote
from app.errors import InternalError, NotReady, ServiceError, UndecodableImage
from app.process import backoff
from tests.app.decoding.pool import faults
from tests.support.pool import JOB, LIGHT, exists, pids, settled

TIMEOUT_S = 60
PROCESSES = 2

Opened = tuple[ProcessDecoder, Counter[str]]


async def opened(**job: Any) -> Opened:
    restarts: Counter[str] = Counter()
    decoder = ProcessDecoder(
        Zygote(LIGHT), replace(JOB, **job), processes=PROCESSES, on_restart=lambda reason: restarts.update([reason])
    )
    await asyncio.to_thread(decoder.warm_up)
    decoder.start()
    return decoder, restarts


@asynccontextmanager
async def open_pool(**job: Any) -> AsyncIterator[Opened]:
    decoder, restarts = await opened(**job)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield decoder, restarts
    finally:
        await decoder.close()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.001)


async def value(decoder: ProcessDecoder, number: int) -> int:
    return int(np.unique((await decoder.decode(b"good %d" % number)).pixels).item())


def workers_of(decoder: ProcessDecoder) -> list[int]:
    """Return the ids of the zygote's children, as the kernel lists them."""
    zygote = decoder._spawner.zygote._process.pid
    try:
        children = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    except OSError:  # the zygote has ended
        return []
    return [int(pid) for pid in children if exists(int(pid))]


def idle(decoder: ProcessDecoder) -> list[Worker]:
    return [worker for worker in decoder._workers if worker.state is State.IDLE]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while exists(pid):
        os.sched_yield()


async def is_sound(decoder: ProcessDecoder, restarts: Counter[str]) -> None:
    """Wait for all replacements; then check that images are right, and that no process is lost or left over."""
    await until(lambda: sorted(pids(decoder)) == sorted(workers_of(decoder)) and len(pids(decoder)) == PROCESSES)
    before = restarts.total()
    for _ in range(3):
        assert await asyncio.gather(*(value(decoder, number) for number in range(20))) == list(range(20))
        await settled(decoder)
    assert restarts.total() == before
    assert len(idle(decoder)) == len(workers_of(decoder)) == PROCESSES
    assert not len(decoder._backlog._queue)
    assert not decoder._backlog._queue._running


async def test_all_workers_crash_at_once() -> None:
    async with open_pool() as (decoder, restarts):
        for _ in range(20):
            calls = [asyncio.create_task(decoder.decode(b"signal 11")) for _ in range(PROCESSES)]
            waiting = [asyncio.create_task(value(decoder, number)) for number in range(3)]
            assert await asyncio.gather(*waiting) == [0, 1, 2]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, UndecodableImage)
        await is_sound(decoder, restarts)


async def test_killed_at_random_for_a_while() -> None:
    async with open_pool() as (decoder, restarts):
        rng, outcomes, over = random.Random(0), Counter[str](), asyncio.Event()

        async def client(number: int) -> None:
            while not over.is_set():
                try:
                    assert await value(decoder, number) == number
                    outcomes["right"] += 1
                except NotReady:
                    outcomes["refused"] += 1
                    await asyncio.sleep(0.1)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for _ in range(60):
            if workers := workers_of(decoder):
                kill(rng.choice(workers))
            await asyncio.sleep(rng.random() * 0.06)
        over.set()
        await asyncio.gather(*clients)
        assert outcomes["right"] > outcomes["refused"]
        await is_sound(decoder, restarts)


async def test_all_killed_again_and_again() -> None:
    async with open_pool() as (decoder, restarts):
        calls = [asyncio.create_task(value(decoder, number % 250)) for number in range(1000)]
        for _ in range(500):
            for pid in workers_of(decoder):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.002)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        right = [number % 250 for number in range(1000)]
        assert all(got == number or isinstance(got, NotReady) for got, number in zip(outcomes, right, strict=True))
        await is_sound(decoder, restarts)


@pytest.mark.parametrize("kills", [1, 3])
async def test_killed_at_the_fork(kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, left = Zygote._fork, [0]

    def fork_and_kill(self: Zygote, *arguments: Any) -> WorkerProcess:
        worker = fork(self, *arguments)
        if left[0]:
            left[0] -= 1
            kill(worker.pid)
        return worker

    async with open_pool() as (decoder, restarts):
        monkeypatch.setattr(Zygote, "_fork", fork_and_kill)
        left[0] = kills
        kill(workers_of(decoder)[0])
        assert await value(decoder, 5) == 5
        await is_sound(decoder, restarts)
        assert restarts == {"killed": 1, "start": kills}


@pytest.mark.parametrize("image", [b"reply-and 9", b"reply-and 11"])
async def test_killed_with_its_reply_sent(image: bytes) -> None:
    async with open_pool() as (decoder, restarts):
        for _ in range(10):
            outcomes = await asyncio.gather(decoder.decode(image), value(decoder, 7), return_exceptions=True)
            assert outcomes[1] == 7
            assert not isinstance(outcomes[0], BaseException)
        await is_sound(decoder, restarts)


async def test_zygote_killed_under_load() -> None:
    async with open_pool() as (decoder, restarts):
        calls = [asyncio.create_task(value(decoder, number)) for number in range(200)]
        await asyncio.sleep(0)
        kill(decoder._spawner.zygote._process.pid)
        assert await asyncio.gather(*calls) == list(range(200))
        await is_sound(decoder, restarts)


def pool_that_cannot_start(tmp_path: Path) -> tuple[Path, Preprocessor]:
    file = tmp_path / "broken"
    return file, Preprocessor(partial(faults.decode_unless, str(file)), faults.SHAPE)


async def test_deaths_at_start_back_off_until_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, broken = pool_that_cannot_start(tmp_path)
    monkeypatch.setattr(backoff, "_BACKOFF_S", (0.01, 0.1))
    pauses: list[float] = []

    async with open_pool(preprocessor=broken) as (decoder, restarts):
        failed = decoder._spawner._on_failure

        def count(error: Exception) -> None:
            failed(error)
            pauses.append(decoder._spawner.backoff._until)

        monkeypatch.setattr(decoder._spawner, "_on_failure", count)
        file.touch()
        waiting = asyncio.create_task(decoder.decode(b"good 1"))  # two workers die on it, or it waits
        for pid in workers_of(decoder):
            kill(pid)
        await until(lambda: decoder.why_not_ready is not None)
        assert "end before they have decoded" in str(decoder.why_not_ready)
        assert 8 <= restarts.total() <= 10
        with pytest.raises((NotReady, UndecodableImage)):
            await waiting
        with pytest.raises(NotReady):
            await decoder.decode(b"good 1")
        await until(lambda: restarts["start"] >= 12)
        assert all(second - first > 0.09 for first, second in pairwise(pauses[6:]))  # timers may fire a little early
        file.unlink()
        await until(lambda: decoder.why_not_ready is None)
        await is_sound(decoder, restarts)


async def test_deaths_without_decoded_image_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BACKOFF_S", (0.01, 0.1))
    pauses: list[float] = []

    async with open_pool() as (decoder, restarts):
        fail = decoder._spawner.backoff.fail

        def count(*, pause: bool = True) -> float:
            pauses.append(fail(pause=pause))
            return pauses[-1]

        monkeypatch.setattr(decoder._spawner.backoff, "fail", count)
        while len(pauses) < 10:
            with pytest.raises((UndecodableImage, NotReady)):
                await decoder.decode(b"signal 11")
            await asyncio.sleep(0.001)
        assert pauses[:10] == [0, 0.02, 0.04, 0.08, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
        await until(lambda: decoder.why_not_ready is None)
        assert await value(decoder, 3) == 3
        pauses.clear()
        with pytest.raises(UndecodableImage):
            await decoder.decode(b"signal 11")
        await until(lambda: len(pauses) == 2)
        assert pauses == [0, 0.02]
        await is_sound(decoder, restarts)


@pytest.mark.parametrize("raises", [1, 5])
async def test_no_thread_for_a_replacement(raises: int, monkeypatch: pytest.MonkeyPatch) -> None:
    to_thread, left = asyncio.to_thread, [0]

    async def scarce(function: Any, *arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        return await to_thread(function, *arguments)

    async with open_pool() as (decoder, restarts):
        monkeypatch.setattr(asyncio, "to_thread", scarce)
        left[0] = raises
        calls = [asyncio.create_task(value(decoder, number)) for number in range(50)]
        await asyncio.sleep(0)
        kill(workers_of(decoder)[0])
        assert await asyncio.gather(*calls) == list(range(50))
        await until(lambda: left == [0])
        await is_sound(decoder, restarts)


async def test_close_does_not_wait_for_the_backoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, broken = pool_that_cannot_start(tmp_path)
    monkeypatch.setattr(backoff, "_BACKOFF_S", (3600.0, 3600.0))

    async with open_pool(preprocessor=broken) as (decoder, restarts):
        file.touch()
        kill(workers_of(decoder)[0])
        await until(lambda: restarts["start"] > 0)


class PoolMachine(RuleBasedStateMachine):
    """Images sent and cancelled, processes killed, in any order: each image gets its outcome, and the pool recovers."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.decoder, self.restarts = self.runner.run(opened())
        self.calls: list[tuple[bytes, asyncio.Task[Any]]] = []
        self.cancelled: set[asyncio.Task[Any]] = set()

    @rule(image=st.sampled_from([b"good 1", b"good 2", b"good 3", b"exit", b"signal 11", b"signal 9", b"raise it", b"break",
                                 b"poison", b"reply-and 9", b"say nonsense", b"no image"]))  # fmt: skip
    def send(self, image: bytes) -> None:
        self.calls.append((image, self.runner.get_loop().create_task(self.decoder.decode(image))))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        _, call = data.draw(st.sampled_from(self.calls))
        if call.cancel():
            self.cancelled.add(call)

    @rule(which=st.integers(0, PROCESSES - 1))
    def kill_worker(self, which: int) -> None:
        for pid in workers_of(self.decoder)[which : which + 1]:
            kill(pid)

    @rule(chance=st.integers(0, 9))
    def kill_zygote(self, chance: int) -> None:
        if chance == 9:
            kill(self.decoder._spawner.zygote._process.pid)

    @rule(turns=st.integers(1, 20))
    def go_on(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(turn())

    @rule()
    def wait(self) -> None:
        self.runner.run(asyncio.sleep(0.005))

    @invariant()
    def each_worker_is_in_one_state(self) -> None:
        for worker in self.decoder._workers:
            assert worker.state is (State.IDLE if worker.turn is None else State.BUSY)
            assert (worker._timeout is None) == (worker.turn is None)
        replacing = sum(not task.done() for task in self.decoder._replacing)
        assert len(self.decoder._workers) + replacing == PROCESSES

    def teardown(self) -> None:
        try:
            self.runner.run(asyncio.wait_for(self._end(), TIMEOUT_S))
        finally:
            self.runner.run(self.decoder.close())
            assert not self.decoder._workers
            self.runner.close()

    async def _end(self) -> None:
        outcomes = await asyncio.gather(*(call for _, call in self.calls), return_exceptions=True)
        for (image, call), outcome in zip(self.calls, outcomes, strict=True):
            if call not in self.cancelled:
                assert _is_right(image, outcome), (image, outcome)
        await until(lambda: len(idle(self.decoder)) == PROCESSES)  # also those with cancelled calls
        await asyncio.gather(*(self.decoder.decode(b"good 1") for _ in range(20)), return_exceptions=True)
        await is_sound(self.decoder, self.restarts)


def _is_right(image: bytes, outcome: object) -> bool:
    """Return True if this may be the outcome of an image, with workers killed meanwhile."""
    if isinstance(outcome, NotReady):
        return True  # killed again and again
    match image.partition(b" ")[0]:
        case b"good":  # or twice it followed an image that broke its worker
            right = isinstance(outcome, Decoded) and (outcome.pixels == int(image.partition(b" ")[2])).all()
            return bool(right) or isinstance(outcome, UndecodableImage | InternalError)
        case b"raise":
            return isinstance(outcome, InternalError | UndecodableImage)
        case b"no" | b"exit" | b"signal" | b"say" | b"break":  # or an error of the one before
            return isinstance(outcome, InternalError | UndecodableImage)
    return isinstance(outcome, Decoded | ServiceError)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)

"""Everything that may happen to a batcher, in any order, with a clock that the machine moves and runs that it ends by hand."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory, QueueFull
from app.serving.batching import Batcher, Served

MAX_RUN_S = 10.0
MAX_QUEUE_BYTES = 100

_LATE = 20
"""Callers before the end may come: after it little happens that could go wrong."""


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is moved; asyncio's, because uvloop's clock cannot be replaced."""

    now = 0.0

    def time(self) -> float:
        return self.now


@dataclass(eq=False)
class Caller:
    """Somebody who submitted the item `number`."""

    number: int
    deadline: float
    expects_room: bool
    task: asyncio.Task[Served[int]] | None = None
    cancelled: bool = False
    failed_alone: bool = False
    """A run of this item and no other has failed."""


@dataclass(eq=False)
class Run:
    """A run that has begun; it ends when `outcome` is set."""

    callers: list[Caller]
    began: float
    outcome: asyncio.Future[list[int]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = ClockLoop()
        self.callers: list[Caller] = []
        self.under_way: list[Run] = []
        self.holds: list[AbstractContextManager[Callable[[int], None]]] = []
        self.held = 0
        self.stopped = self.died = False
        self.violations: list[str] = []

    def settle(self, work: Coroutine[Any, Any, None] | None = None) -> None:
        """Let everything happen that can happen before the clock moves."""

        async def turns() -> None:
            if work is not None:
                await work
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # what the batcher calls

    async def run(self, numbers: Sequence[int]) -> Sequence[int]:
        run = Run([self.callers[number] for number in numbers], self.loop.now)
        busy = {caller.number for other in self.under_way for caller in other.callers}
        # noted and not raised: what a run raises, the batcher takes for a failure of the model
        if not 1 <= len(numbers) <= self.batcher.max_batch_size:
            self.violations.append(f"a run of {len(numbers)} items, {self.batcher.max_batch_size} are allowed")
        for caller in run.callers:
            if caller.number in busy:
                self.violations.append(f"two runs of {caller}")
            if caller.cancelled:
                self.violations.append(f"a run of {caller}, who has gone")
            if self.loop.now >= caller.deadline:
                self.violations.append(f"a run of {caller}, whose deadline has passed")
        self.under_way.append(run)
        try:
            return await run.outcome
        finally:
            self.under_way.remove(run)

    def on_death(self) -> None:
        if self.stopped:
            self.violations.append("it died after it was stopped")
        self.died = True

    async def call(self, caller: Caller) -> Served[int]:
        with self.batcher.place():
            return await self.batcher.submit(caller.number, caller.deadline)

    # what may happen

    @initialize(
        max_batch_size=st.integers(1, 5),
        max_inflight_images=st.integers(1, 12),
        max_runs=st.integers(1, 3),
        side_by_side=st.booleans(),
    )
    def start(self, **options: Any) -> None:
        self.max_inflight_images, self.max_runs = options["max_inflight_images"], options["max_runs"]

        async def start() -> None:
            self.batcher = Batcher[int, int](self.run, max_inflight_bytes=MAX_QUEUE_BYTES, max_run_s=MAX_RUN_S, **options)
            self.batcher.start(self.on_death)

        self.settle(start())

    @rule(count=st.integers(1, 6), patience=st.sampled_from([0.0, 1.0, 5.0, 1000.0]))
    def submit(self, count: int, patience: float) -> None:
        async def begin() -> None:
            for _ in range(count):
                room = self.batcher.accepted < self.max_inflight_images
                caller = Caller(len(self.callers), self.loop.now + patience, room)
                self.callers.append(caller)
                caller.task = asyncio.create_task(self.call(caller))
                await asyncio.sleep(0)  # it takes its place, or finds none

        self.settle(begin())

    @rule(data=st.data())
    @precondition(lambda self: any(not caller.task.done() for caller in self.callers))
    def cancel(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.callers if caller.task and not caller.task.done()]))
        assert caller.task is not None
        caller.cancelled = True
        caller.task.cancel()
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.now += seconds
        hangs = any(self.loop.now >= run.began + MAX_RUN_S for run in self.under_way)
        self.settle()
        assert self.died or not hangs

    @rule(data=st.data(), how=st.sampled_from(["well", "well", "failed", "short", "out of memory"]))
    @precondition(lambda self: self.under_way)
    def end_a_run(self, data: st.DataObject, how: str) -> None:
        self.end(data.draw(st.sampled_from(self.under_way)), how)

    @rule(data=st.data(), hangs=st.booleans())
    @precondition(lambda self: self.under_way and len(self.callers) > _LATE)
    def let_the_engine_die(self, data: st.DataObject, hangs: bool) -> None:
        if hangs:
            self.let_time_pass(MAX_RUN_S)
        else:
            self.end(data.draw(st.sampled_from(self.under_way)), "dead")

    def end(self, run: Run, how: str) -> None:
        results = [caller.number * 10 for caller in run.callers]
        if how not in ("well", "dead") and len(run.callers) == 1:
            run.callers[0].failed_alone = True
        match how:
            case "well":
                run.outcome.set_result(results)
            case "short":
                run.outcome.set_result(results[1:])
            case "failed":
                run.outcome.set_exception(ValueError("it failed"))
            case "out of memory":
                run.outcome.set_exception(OutOfMemory())
            case "dead":
                run.outcome.set_exception(EngineDead("the device is gone"))
        self.settle()
        assert self.died or self.stopped or how != "dead"

    @rule(size=st.integers(0, 60))
    def hold_bytes(self, size: int) -> None:
        holding = self.batcher.bytes_held()
        hold = holding.__enter__()
        try:
            hold(size)
        except QueueFull:
            assert self.held + size > MAX_QUEUE_BYTES
            holding.__exit__(None, None, None)
        else:
            self.holds.append(holding)
            self.held += size
        if not self.holds:
            self.held = 0

    @rule()
    @precondition(lambda self: self.holds)
    def release_all_bytes(self) -> None:
        while self.holds:
            self.holds.pop().__exit__(None, None, None)
        self.held = 0

    @rule()
    @precondition(lambda self: len(self.callers) > _LATE and not self.stopped)
    def stop(self) -> None:
        self.stopped = True
        self.settle(self.batcher.stop())

    # what always holds

    @invariant()
    def no_run_is_wrong(self) -> None:
        assert self.violations == []

    @invariant()
    def every_bound_is_kept(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert self.batcher.accepted <= self.max_inflight_images
        assert self.batcher.held_bytes == self.held <= MAX_QUEUE_BYTES
        assert len(self.under_way) <= self.max_runs
        assert self.batcher.waiting <= self.batcher.accepted

    @invariant()
    def nothing_waits_for_nothing(self) -> None:
        if not hasattr(self, "batcher"):
            return
        if self.died or self.stopped:
            assert all(caller.task and caller.task.done() for caller in self.callers)
            assert self.batcher.waiting == 0
        else:
            assert self.batcher.alive
            assert self.batcher.waiting == 0 or len(self.under_way) == self.max_runs

    @invariant()
    def every_outcome_is_ones_own(self) -> None:
        for caller in self.callers:
            if caller.task is not None and caller.task.done():
                self.check(caller, caller.task)

    def check(self, caller: Caller, task: asyncio.Task[Served[int]]) -> None:
        if task.cancelled():
            assert caller.cancelled
            return
        match task.exception():
            case None:
                assert task.result().result == caller.number * 10
            case InferenceFailed():
                assert caller.failed_alone
            case DeadlineExceeded():
                assert self.loop.now >= caller.deadline
            case QueueFull():
                assert not caller.expects_room
            case NotReady():
                assert self.died
            case Draining():
                assert self.stopped
            case error:
                raise AssertionError(f"{caller} got {error!r}")

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            while self.under_way and not self.died:
                self.end(self.under_way[0], "well")
            if not (self.died or self.stopped):
                assert all(caller.task and caller.task.done() for caller in self.callers)
                assert self.batcher.accepted == 0
            self.settle(self.batcher.stop())
        self.loop.close()


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

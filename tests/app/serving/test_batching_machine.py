"""Hypothesis state machine: events of admission and batcher in any order, on a clock that rules advance."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory, QueueFull
from app.serving.admission import Admission
from app.serving.batch import BatchResult
from app.serving.batching import Batcher, BatchSlots

TIMEOUT_S = 10.0
MAX_BYTES = 100

_LATE = 20
"""Clients to submit before a stop or death: little can go wrong after it."""


class ClockLoop(asyncio.SelectorEventLoop):
    """Event loop with a clock that only rules advance; asyncio's, because uvloop's clock cannot be replaced."""

    now = 0.0

    def time(self) -> float:
        return self.now


@dataclass(eq=False)
class Client:
    """A client that submitted the item `number`."""

    number: int
    deadline: float
    expects_slot: bool
    task: asyncio.Task[BatchResult[int]] | None = None
    cancelled: bool = False
    failed_alone: bool = False
    """True if a batch of this item alone has failed."""


@dataclass(eq=False)
class Batch:
    """A batch in flight; it ends when `outcome` is set."""

    clients: list[Client]
    began: float
    outcome: asyncio.Future[list[int]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def violations(self, others: Sequence["Batch"], max_batch_size: int) -> Iterator[str]:
        """Yield each reason why this batch should not have begun."""
        busy = {client.number for other in others for client in other.clients}
        if not 1 <= len(self.clients) <= max_batch_size:
            yield f"a batch of {len(self.clients)} items, {max_batch_size} are allowed"
        for client in self.clients:
            if client.number in busy:
                yield f"two batches with {client}"
            if client.cancelled:
                yield f"a batch with {client}, which was cancelled"
            if self.began >= client.deadline:
                yield f"a batch with {client}, whose deadline has passed"

    def end(self, how: str) -> None:
        results = [client.number * 10 for client in self.clients]
        if how not in ("well", "dead") and len(self.clients) == 1:
            self.clients[0].failed_alone = True
        match how:
            case "well":
                self.outcome.set_result(results)
            case "short":
                self.outcome.set_result(results[1:])
            case "failed":
                self.outcome.set_exception(ValueError("it failed"))
            case "out of memory":
                self.outcome.set_exception(OutOfMemory())
            case "dead":
                self.outcome.set_exception(EngineDead("the device is gone"))


class BatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = ClockLoop()
        self.clients: list[Client] = []
        self.in_flight: list[Batch] = []
        self.reservations: list[AbstractContextManager[Callable[[int], None]]] = []
        self.reserved = 0
        self.stopped = self.died = False
        self.violations: list[str] = []

    def settle(self, work: Coroutine[Any, Any, None] | None = None) -> None:
        """Run the event loop until all tasks wait for the clock, a batch or an event."""

        async def turns() -> None:
            if work is not None:
                await work
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # called by the batcher

    async def run(self, numbers: Sequence[int]) -> Sequence[int]:
        batch = Batch([self.clients[number] for number in numbers], self.loop.now)
        # collected, because the batcher takes an exception of `run` for a failure of the model
        self.violations += batch.violations(self.in_flight, self.batcher.max_batch_size)
        self.in_flight.append(batch)
        try:
            return await batch.outcome
        finally:
            self.in_flight.remove(batch)

    def on_death(self) -> None:
        if self.stopped:
            self.violations.append("died after it was stopped")
        self.died = True

    async def call(self, client: Client) -> BatchResult[int]:
        with self.admission.slot():
            return await self.batcher.submit(client.number, client.deadline)

    # events

    @initialize(
        max_batch_size=st.integers(1, 5),
        max_inflight_images=st.integers(1, 12),
        slots=st.integers(1, 3),
        independent_streams=st.booleans(),
    )
    def start(self, **options: Any) -> None:
        self.max_inflight_images, self.slots = options["max_inflight_images"], options["slots"]

        async def start() -> None:
            self.admission = Admission(max_images=self.max_inflight_images, max_bytes=MAX_BYTES)
            self.batcher = Batcher[int, int](
                self.run,
                max_batch_size=options["max_batch_size"],
                slots=BatchSlots(self.slots),
                independent_streams=options["independent_streams"],
                inference_timeout_s=TIMEOUT_S,
            )
            self.batcher.start(self.on_death)

        self.settle(start())

    @rule(count=st.integers(1, 6), patience=st.sampled_from([0.0, 1.0, 5.0, 1000.0]))
    def submit(self, count: int, patience: float) -> None:
        async def begin() -> None:
            for _ in range(count):
                has_slot = self.admission.images < self.max_inflight_images
                client = Client(len(self.clients), self.loop.now + patience, has_slot)
                self.clients.append(client)
                client.task = asyncio.create_task(self.call(client))
                await asyncio.sleep(0)  # it takes its slot, or finds none

        self.settle(begin())

    @rule(data=st.data())
    @precondition(lambda self: any(not client.task.done() for client in self.clients))
    def cancel(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from([client for client in self.clients if client.task and not client.task.done()]))
        assert client.task is not None
        client.cancelled = True
        client.task.cancel()
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def advance_clock(self, seconds: float) -> None:
        self.loop.now += seconds
        hangs = any(self.loop.now >= batch.began + TIMEOUT_S for batch in self.in_flight)
        self.settle()
        assert self.died or not hangs

    @rule(data=st.data(), how=st.sampled_from(["well", "well", "failed", "short", "out of memory"]))
    @precondition(lambda self: self.in_flight)
    def end_batch(self, data: st.DataObject, how: str) -> None:
        self.end(data.draw(st.sampled_from(self.in_flight)), how)

    @rule(data=st.data(), hangs=st.booleans())
    @precondition(lambda self: self.in_flight and len(self.clients) > _LATE)
    def kill_engine(self, data: st.DataObject, hangs: bool) -> None:
        if hangs:
            self.advance_clock(TIMEOUT_S)
        else:
            self.end(data.draw(st.sampled_from(self.in_flight)), "dead")

    def end(self, batch: Batch, how: str) -> None:
        batch.end(how)
        self.settle()
        assert self.died or self.stopped or how != "dead"

    @rule(size=st.integers(0, 60))
    def reserve_bytes(self, size: int) -> None:
        context = self.admission.reserve_bytes()
        reserve = context.__enter__()
        try:
            reserve(size)
        except QueueFull:
            assert self.reserved + size > MAX_BYTES
            context.__exit__(None, None, None)
        else:
            self.reservations.append(context)
            self.reserved += size

    @rule()
    @precondition(lambda self: self.reservations)
    def release_all_bytes(self) -> None:
        while self.reservations:
            self.reservations.pop().__exit__(None, None, None)
        self.reserved = 0

    @rule()
    @precondition(lambda self: len(self.clients) > _LATE and not self.stopped)
    def stop(self) -> None:
        self.stopped = True
        self.settle(self.batcher.stop())

    # invariants

    @invariant()
    def no_batch_is_wrong(self) -> None:
        assert self.violations == []

    @invariant()
    def every_bound_is_kept(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert self.admission.images <= self.max_inflight_images
        assert self.admission.bytes == self.reserved <= MAX_BYTES
        assert len(self.in_flight) <= self.slots
        assert self.batcher.queued <= self.admission.images

    @invariant()
    def no_item_waits_for_a_free_slot(self) -> None:
        if not hasattr(self, "batcher"):
            return
        if self.died or self.stopped:
            assert all(client.task and client.task.done() for client in self.clients)
            assert self.batcher.queued == 0
        else:
            assert self.batcher.alive
            assert self.batcher.queued == 0 or len(self.in_flight) == self.slots

    @invariant()
    def every_outcome_is_its_own(self) -> None:
        for client in self.clients:
            if client.task is not None and client.task.done():
                self.check(client, client.task)

    def check(self, client: Client, task: asyncio.Task[BatchResult[int]]) -> None:
        if task.cancelled():
            assert client.cancelled
            return
        match task.exception():
            case None:
                assert task.result().result == client.number * 10
            case InferenceFailed():
                assert client.failed_alone
            case DeadlineExceeded():
                assert self.loop.now >= client.deadline
            case QueueFull():
                assert not client.expects_slot
            case NotReady():
                assert self.died
            case Draining():
                assert self.stopped
            case error:
                raise AssertionError(f"{client} got {error!r}")

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            while self.in_flight and not self.died:
                self.end(self.in_flight[0], "well")
            if not (self.died or self.stopped):
                assert all(client.task and client.task.done() for client in self.clients)
                assert self.admission.images == 0
            self.settle(self.batcher.stop())
        self.loop.close()


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

"""ProcessKeeper with processes that answer when the test lets them."""

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from app.errors import Draining, InferenceFailed, InternalError, NotReady
from app.explaining import keeper as keeper_module
from app.explaining.keeper import ProcessKeeper
from app.explaining.messages import Message
from app.explaining.process import CannotLoad
from app.explaining.question import Question
from app.process import backoff

QUESTION = Question("rollout", None, None)


class FakeProcess:
    """Answers the pixels that it was sent, in the order in which they came, as a socket does."""

    def __init__(self) -> None:
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.ended = False
        self.killed = 0
        self.at_once = self.most_at_once = 0
        self.error: Exception | None = None
        self.fields: dict[str, str] = {}
        self._unread: list[bytes] = []

    async def ask(self, question: Question, pixels: bytes, photograph: bytes) -> Message:
        assert not self.killed
        self._unread.append(pixels)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.begun.set()
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        return self.fields, self._unread.pop(0), photograph

    def kill(self) -> None:
        self.killed += 1


class Fakes:
    """A keeper and the processes that it has started."""

    def __init__(self) -> None:
        self.started: list[FakeProcess] = []
        self.prepare: Callable[[FakeProcess], None] = lambda process: None
        self.refusal: Exception | None = None
        self.losses = 0
        self.busy = False
        self.looks = 0
        self.keeper = ProcessKeeper(self._start, self._lose, self._is_busy)

    @property
    def last(self) -> FakeProcess:
        return self.started[-1]

    async def ask(self, pixels: bytes = b"pixels") -> bytes:
        return (await self.keeper.ask(QUESTION, pixels, b""))[1]

    async def _start(self) -> FakeProcess:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.started.append(FakeProcess())
        self.prepare(self.last)
        return self.last

    def _lose(self) -> None:
        self.losses += 1

    def _is_busy(self) -> bool:
        self.looks += 1
        return self.busy


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


async def asleep(fakes: Fakes, pixels: bytes) -> asyncio.Task[bytes]:
    """Return a question that is being answered."""
    fakes.prepare = lambda process: process.gate.clear()
    task = asyncio.create_task(fakes.ask(pixels))
    while not fakes.started:  # noqa: ASYNC110 - a start sets no Event
        await asyncio.sleep(0)
    await fakes.last.begun.wait()
    return task


async def test_process_starts_at_the_first_question(fakes: Fakes) -> None:
    assert fakes.started == []
    assert [await fakes.ask(b"a"), await fakes.ask(b"b")] == [b"a", b"b"]
    assert len(fakes.started) == 1


async def test_questions_are_asked_one_at_a_time(fakes: Fakes) -> None:
    pixels = [bytes([number]) for number in range(5)]
    assert await asyncio.gather(*map(fakes.ask, pixels)) == pixels
    assert (len(fakes.started), fakes.last.most_at_once) == (1, 1)


async def test_explanation_waits_for_a_lull(fakes: Fakes) -> None:
    fakes.busy = True
    question = asyncio.create_task(fakes.ask(b"a"))
    while fakes.looks < 3:  # noqa: ASYNC110 - a look sets no Event
        await asyncio.sleep(0.01)
    assert fakes.started == []
    fakes.busy = False
    assert await question == b"a"


async def test_explanation_waits_for_no_longer(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.explaining.keeper._LONGEST_WAIT_S", 0.05)
    fakes.busy = True
    assert await fakes.ask(b"a") == b"a"
    assert fakes.looks >= 2


async def test_who_leaves_before_a_lull_costs_nothing(fakes: Fakes) -> None:
    fakes.busy = True
    question = asyncio.create_task(fakes.ask(b"a"))
    while not fakes.looks:  # noqa: ASYNC110 - a look sets no Event
        await asyncio.sleep(0)
    question.cancel()
    await asyncio.wait([question])
    assert (question.cancelled(), fakes.started) == (True, [])
    fakes.busy = False
    assert await fakes.ask(b"b") == b"b"


async def test_closing_ends_the_wait_for_a_lull(fakes: Fakes) -> None:
    fakes.busy = True
    question = asyncio.create_task(fakes.ask(b"a"))
    while not fakes.looks:  # noqa: ASYNC110 - a look sets no Event
        await asyncio.sleep(0)
    fakes.keeper.close()
    with pytest.raises(Draining):
        await question


async def test_answer_of_who_left_goes_to_nobody(fakes: Fakes) -> None:
    first = await asleep(fakes, b"first")
    second = asyncio.create_task(fakes.ask(b"second"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    fakes.last.gate.set()
    assert await second == b"second"
    assert (fakes.last.most_at_once, fakes.losses) == (1, 0)


async def test_who_leaves_the_queue_is_not_asked(fakes: Fakes) -> None:
    first = await asleep(fakes, b"first")
    waiting = [asyncio.create_task(fakes.ask(pixels)) for pixels in (b"second", b"third")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    fakes.last.gate.set()
    assert await first == b"first"
    assert await waiting[1] == b"third"  # the fake would answer `second` to it


async def test_loss_is_told_then_started_again(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BACKOFF_S", (3600.0, 3600.0))
    await fakes.ask()
    fakes.last.error = ConnectionResetError("gone")
    with capture_logs() as logs:
        with pytest.raises(InternalError):
            await fakes.ask()
        with pytest.raises(NotReady) as refused:
            await fakes.ask()
        assert 3590 < refused.value.retry_after_s <= 3600
        assert (fakes.last.killed, fakes.losses, len(fakes.started)) == (1, 1, 1)
        fakes.keeper._backoff._until = 0  # the pause is over
        assert await fakes.ask(b"again") == b"again"
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("the process that explains was lost", "warning"),
        ("ready to explain", "info"),
    ]
    assert (logs[0]["reason"], logs[0]["in_s"], logs[1]["failures"]) == ("gone", 3600, 1)
    assert len(fakes.started) == 2


async def test_answer_ends_the_row_of_failures(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BACKOFF_S", (0.0, 0.0))
    for _ in range(3):
        fakes.refusal = CannotLoad("no such file")
        with pytest.raises(NotReady):
            await fakes.ask()
    assert fakes.keeper._backoff.failures == 3
    fakes.refusal = None
    await fakes.ask()
    assert fakes.keeper._backoff.failures == 0


@pytest.mark.parametrize("refusal", [CannotLoad("no such file"), OSError("no memory"), EOFError("ended")], ids=repr)
async def test_failed_start_is_not_ready(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, refusal: Exception) -> None:
    monkeypatch.setattr(backoff, "_BACKOFF_S", (7.0, 7.0))
    fakes.refusal = refusal
    with capture_logs() as logs, pytest.raises(NotReady) as refused:
        await fakes.ask()
    assert refused.value.retry_after_s == 7
    assert [(line["event"], line["reason"]) for line in logs] == [("the process that explains cannot be started", str(refusal))]
    assert fakes.losses == 1


async def test_slow_start_is_given_up(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_START_S", 0.01)
    forever = ProcessKeeper(asyncio.Event().wait, lambda: None)  # type: ignore[arg-type]  # it never returns
    with capture_logs() as logs, pytest.raises(NotReady):
        await forever.ask(QUESTION, b"", b"")
    assert logs[0]["reason"] == "TimeoutError"


async def test_hung_process_is_ended(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_RUN_S", 0.01)
    fakes.prepare = lambda process: process.gate.clear()
    with pytest.raises(InternalError):
        await fakes.ask()
    assert (fakes.last.killed, fakes.losses) == (1, 1)


async def test_death_while_idle_fails_no_image(fakes: Fakes) -> None:
    await fakes.ask()
    fakes.last.ended = True
    with capture_logs() as logs:
        assert await fakes.ask(b"next") == b"next"
    assert [line["event"] for line in logs] == ["the process that explains ended while it was idle", "ready to explain"]
    assert (len(fakes.started), fakes.started[0].killed, fakes.losses) == (2, 1, 1)


@pytest.mark.parametrize(("field", "kind"), [("error", InternalError), ("failed", InferenceFailed)])
async def test_failed_image_keeps_the_process(fakes: Fakes, field: str, kind: type[Exception]) -> None:
    await fakes.ask()
    fakes.last.fields = {field: "what happened"}
    with capture_logs() as logs, pytest.raises(kind):
        await fakes.ask()
    assert ["what happened" in line["event"] for line in logs] == ([True] if field == "error" else [])
    fakes.last.fields = {}
    assert await fakes.ask(b"next") == b"next"
    assert (len(fakes.started), fakes.losses) == (1, 0)


@pytest.mark.parametrize("fields", [{}, {"error": "what happened"}], ids=["answered", "failed"])
async def test_idle_process_is_ended(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]) -> None:
    monkeypatch.setattr(keeper_module, "_IDLE_S", 0.01)
    fakes.prepare = lambda process: process.fields.update(fields)
    await asyncio.gather(fakes.ask(), return_exceptions=True)
    async with asyncio.timeout(30):
        while not fakes.last.killed:  # noqa: ASYNC110 - the end sets no Event
            await asyncio.sleep(0.01)
    fakes.prepare = lambda process: None
    assert await fakes.ask(b"later") == b"later"
    assert (len(fakes.started), fakes.losses) == (2, 0)


async def test_busy_process_is_not_idle(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_IDLE_S", 0.02)
    await fakes.ask()
    fakes.last.gate.clear()
    slow = asyncio.create_task(fakes.ask(b"slow"))
    await asyncio.sleep(0.06)
    assert fakes.last.killed == 0
    fakes.last.gate.set()
    assert await slow == b"slow"


async def test_closing_drains_running_and_waiting(fakes: Fakes) -> None:
    running = await asleep(fakes, b"running")
    waiting = [asyncio.create_task(fakes.ask()) for _ in range(2)]
    await asyncio.sleep(0)
    fakes.keeper.close()
    outcomes = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Draining] * 3
    assert (len(fakes.started), fakes.last.killed, fakes.losses) == (1, 1, 0)
    with pytest.raises(Draining):
        await fakes.ask()


async def test_closing_while_it_starts(fakes: Fakes) -> None:
    starting = asyncio.create_task(fakes.ask())
    await asyncio.sleep(0)
    fakes.keeper.close()
    with pytest.raises(Draining):
        await starting
    assert fakes.started == []

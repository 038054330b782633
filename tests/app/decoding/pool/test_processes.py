"""Workers that hang, crash, lie and die: only the image that they had is lost, and the next one is right."""

import asyncio
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from app.decoding import Preprocessor
from app.decoding.pool import zygote as forking
from app.decoding.pool.processes import ProcessDecoder
from app.decoding.pool.sandbox import needed_bytes
from app.decoding.pool.worker import State
from app.decoding.pool.zygote import WorkerProcess, Zygote, _environment, _shared_memory
from app.decoding.pool.zygote_main import SERVICE_SIGNALS
from app.errors import Draining, ImageTooLarge, InternalError, NotReady, ServiceError, StartError, UndecodableImage
from model.preprocessing import Preprocessing
from tests.app.decoding import decoders
from tests.app.decoding.pool import faults
from tests.support.models import ROOT, encode, random_image
from tests.support.pool import JOB, LIGHT, exists, pids, settled

Open = Callable[..., Awaitable[tuple[ProcessDecoder, Counter[str]]]]


@pytest.fixture
async def open_decoder() -> AsyncIterator[Open]:
    """Open decoders: `decoder, restarts = await open_decoder(processes=1, timeout_s=...)`."""
    decoders = []

    async def open_decoder(*, processes: int = 1, **job: Any) -> tuple[ProcessDecoder, Counter[str]]:
        restarts: Counter[str] = Counter()
        decoder = ProcessDecoder(
            Zygote(LIGHT), replace(JOB, **job), processes=processes, on_restart=lambda reason: restarts.update([reason])
        )
        decoders.append(decoder)
        await asyncio.to_thread(decoder.warm_up)
        decoder.start()
        return decoder, restarts

    yield open_decoder
    for decoder in decoders:
        await decoder.close()


async def value(decoder: ProcessDecoder, image: bytes) -> int:
    """Return the value of every pixel of the image."""
    pixels = (await decoder.decode(image)).pixels
    assert pixels.shape == faults.SHAPE
    return int(np.unique(pixels).item())


def stop(pid: int) -> None:
    """Stop a process, and wait until it is: it might read an image before."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()


async def test_each_image_gets_its_own_pixels(open_decoder: Open) -> None:
    decoder, _ = await open_decoder(processes=2)
    numbers = list(range(200))
    assert await asyncio.gather(*(value(decoder, b"good %d" % number) for number in numbers)) == numbers


async def test_next_image_leaves_pixels_alone(open_decoder: Open) -> None:
    decoder, _ = await open_decoder()
    first = (await decoder.decode(b"good 1")).pixels
    await decoder.decode(b"good 2")
    assert (first == 1).all()


async def test_models_share_a_pool(open_decoder: Open) -> None:
    shapes = [faults.SHAPE, (3, 5, 4), (1, 2, 3)]
    table = tuple(Preprocessor(partial(faults.decode_to, shape), shape) for shape in shapes)
    decoder, restarts = await open_decoder(processes=2)
    images = [(number, number % 3) for number in range(60)]
    calls = (decoder.decode(b"good %d" % number, preprocessor=table[index]) for number, index in images)
    for (number, index), decoded in zip(images, await asyncio.gather(*calls), strict=True):
        assert decoded.pixels.shape == shapes[index]
        assert (decoded.pixels == number).all()
    assert not restarts


@pytest.mark.parametrize("image", [b"spin", b"wait 3600"])
async def test_hanging_image_is_refused(open_decoder: Open, image: bytes) -> None:
    decoder, restarts = await open_decoder(timeout_s=0.3)
    hung, others = decoder.decode(image), [value(decoder, b"good %d" % number) for number in (1, 2, 3)]
    outcomes = await asyncio.gather(hung, *others, return_exceptions=True)
    assert isinstance(outcomes[0], UndecodableImage)
    assert str(outcomes[0]) == "The image takes too long to decode."
    assert outcomes[1:] == [1, 2, 3]
    assert restarts == {"timeout": 1}


async def test_time_of_a_hanging_image_counts() -> None:
    busy = list[float]()
    job = replace(JOB, timeout_s=0.3)
    decoder = ProcessDecoder(Zygote(LIGHT), job, processes=1, on_restart=lambda _: None, on_busy=busy.append)
    await asyncio.to_thread(decoder.warm_up)
    decoder.start()
    with pytest.raises(UndecodableImage):
        await decoder.decode(b"spin")
    assert await value(decoder, b"good 1") == 1
    await decoder.close()
    hung, good = busy
    assert hung > good > 0


@pytest.mark.parametrize(
    "image", [b"signal %d" % signal.SIGSEGV, b"signal %d" % signal.SIGKILL, b"signal %d" % signal.SIGABRT, b"exit"], ids=str
)
async def test_crashing_image_is_refused(open_decoder: Open, image: bytes) -> None:
    decoder, restarts = await open_decoder()
    crash, good = await asyncio.gather(decoder.decode(image), value(decoder, b"good 5"), return_exceptions=True)
    assert good == 5
    killed = image == b"signal 9"  # as the kernel kills when memory runs out: not the image's fault
    assert isinstance(crash, NotReady if killed else UndecodableImage)
    assert restarts == ({"killed": 5} if killed else {"crashed": 2})


async def test_damage_by_the_image_before_is_retried(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    assert await value(decoder, b"poison") == 7
    assert await value(decoder, b"good 8") == 8
    assert restarts == {"crashed": 1}


async def test_memory_eater_is_refused(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    with pytest.raises(ImageTooLarge, match="does not fit into memory"):
        await decoder.decode(b"eat")
    assert await value(decoder, b"good 9") == 9
    assert not restarts


@pytest.mark.parametrize(
    ("image", "place"), [(b"raise secret", "RuntimeError at faults.py"), (b"shape", "ValueError at preprocessor.py")]
)
async def test_own_fault_is_internal_error(
    open_decoder: Open, image: bytes, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    decoder, restarts = await open_decoder()
    with pytest.raises(InternalError) as raised:
        await decoder.decode(image)
    assert place in caplog.text
    assert "secret" not in caplog.text + str(raised.value)
    assert not restarts


async def test_fault_outside_decoding_is_exit_1(open_decoder: Open, caplog: pytest.LogCaptureFixture) -> None:
    decoder, restarts = await open_decoder()
    with pytest.raises(InternalError):
        await decoder.decode(b"break")
    await settled(decoder)
    assert caplog.text.count("'ended': 'exit status 1'") == restarts["crashed"] == 2


@pytest.mark.parametrize("image", [b"say nonsense", b"say-next 99"])
async def test_lying_worker_is_replaced(open_decoder: Open, image: bytes) -> None:
    decoder, restarts = await open_decoder()
    with pytest.raises(UndecodableImage):
        await decoder.decode(image)
    assert await value(decoder, b"good 4") == 4
    assert restarts["crashed"] >= 1


async def test_unasked_reply_is_not_the_next_images(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    assert await value(decoder, b"say-next 1") == 0  # with its own number: a second reply follows
    assert await value(decoder, b"good 6") == 6
    assert restarts == {"crashed": 1}


async def test_more_bytes_than_shared_memory_are_413(open_decoder: Open) -> None:
    decoder, _ = await open_decoder()
    with pytest.raises(ImageTooLarge, match="100001 bytes; at most 100000"):
        await decoder.decode(bytes(100_001))


@pytest.mark.parametrize("action", ["read key", "open file", "open socket"])
async def test_worker_has_no_keys_files_or_sockets(open_decoder: Open, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_API_KEYS", "secret")
    decoder, _ = await open_decoder()
    assert await value(decoder, b"can " + action.encode()) == 0


def test_environment_holds_no_secrets() -> None:
    secrets = (
        *("AWS_SECRET_ACCESS_KEY", "VIT_API_KEYS", "LANGCHAIN_API_KEY", "LANGFUSE_SECRET_KEY", "HOMEBREW_GITHUB_API_TOKEN"),
        *("HOME_ASSISTANT_TOKEN", "PATHWAY_LICENSE_KEY", "PYTHONANYWHERE_TOKEN", "TMPDIR_KEY", "LC", "LDAP_PASSWORD"),
    )
    needed = ("LD_LIBRARY_PATH", "LC_ALL", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LANG", "HOME", "PATH", "PYTHONHOME")
    assert set(_environment(dict.fromkeys(secrets + needed, "x"))) == {
        *needed, "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONPATH",
    }  # fmt: skip


async def test_workers_are_first_to_be_oom_killed(open_decoder: Open) -> None:
    decoder, _ = await open_decoder()
    await value(decoder, b"good 1")  # by now it is confined
    (pid,) = pids(decoder)
    assert expendable(pid)


def expendable(pid: int) -> bool:
    return Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


async def test_log_names_request_that_ended_a_worker(open_decoder: Open, caplog: pytest.LogCaptureFixture) -> None:
    decoder, _ = await open_decoder()
    for request_id, image in (("innocent", b"good 1"), ("culprit", b"exit"), ("another", b"good 2")):
        with structlog.contextvars.bound_contextvars(request_id=request_id), suppress(UndecodableImage):
            await decoder.decode(image)
    for pid in pids(decoder):
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    await value(decoder, b"good 3")
    restarts = [record.msg for record in caplog.records if "decoder restarted" in str(record.msg)]
    assert [restart.get("request_id") for restart in restarts if isinstance(restart, dict)] == ["culprit", "culprit", None]


async def test_service_signals_end_no_worker(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    for pid in (decoder._spawner.zygote._process.pid, *pids(decoder)):
        for sig in SERVICE_SIGNALS:
            os.kill(pid, sig)
    assert await value(decoder, b"can ignore signals") == 1
    assert not restarts


async def test_cancelled_in_queue_is_never_begun(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    busy = asyncio.create_task(decoder.decode(b"wait 0.3"))
    waiting = asyncio.create_task(decoder.decode(b"exit"))
    await asyncio.sleep(0)
    waiting.cancel()
    await busy
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await value(decoder, b"good 3") == 3
    assert not restarts


async def test_cancelled_while_decoding_frees_worker(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder()
    busy = asyncio.create_task(decoder.decode(b"wait 0.3"))
    await asyncio.sleep(0)
    busy.cancel()
    assert await value(decoder, b"good 3") == 3
    assert not restarts


async def test_death_while_idle_costs_no_image(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder(processes=2)
    for pid in pids(decoder):
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)  # unnoticed by the event loop
    assert await asyncio.gather(*(value(decoder, b"good %d" % number) for number in range(4))) == [0, 1, 2, 3]
    await settled(decoder)
    assert restarts == {"killed": 2}


async def test_unread_image_goes_to_next_worker(open_decoder: Open) -> None:
    decoder, restarts = await open_decoder(processes=2)
    stopped = set(pids(decoder))
    for pid in stopped:
        stop(pid)
    answer = asyncio.create_task(value(decoder, b"good 3"))
    while stopped:
        await asyncio.sleep(0)
        for worker in decoder._workers:
            if worker.turn is not None and worker.process.pid in stopped:
                os.kill(worker.process.pid, signal.SIGKILL)
                stopped.remove(worker.process.pid)
    assert await answer == 3
    await settled(decoder)
    assert restarts == {"killed": 2}


async def test_dead_zygote_is_replaced(open_decoder: Open) -> None:
    decoder, _ = await open_decoder()
    (pid,) = pids(decoder)
    os.kill(decoder._spawner.zygote._process.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while pids(decoder) == [pid] or not pids(decoder):  # noqa: ASYNC110 - it ends when its parent has
            await asyncio.sleep(0.01)
    assert await value(decoder, b"good 2") == 2


async def test_close_fails_all_and_leaves_no_process(open_decoder: Open) -> None:
    decoder, _ = await open_decoder()
    left = [decoder._spawner.zygote._process.pid, *pids(decoder)]
    calls = [asyncio.create_task(decoder.decode(image)) for image in (b"spin", b"good 1")]
    await asyncio.sleep(0)
    await decoder.close()
    assert [type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)] == [Draining, Draining]
    with pytest.raises(Draining):
        await decoder.decode(b"good 1")
    assert not any(exists(pid) for pid in left)


async def test_no_descriptor_for_a_replacement(open_decoder: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, restarts = await open_decoder(processes=2)
    zygote, make, refused = decoder._spawner.zygote, forking._shared_memory, asyncio.Event()
    loop = asyncio.get_running_loop()

    def no_more(size: int) -> int:
        monkeypatch.setattr(forking, "_shared_memory", make)
        loop.call_soon_threadsafe(refused.set)
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(forking, "_shared_memory", no_more)
    killed = pids(decoder)[0]
    os.kill(killed, signal.SIGKILL)
    await refused.wait()
    assert await value(decoder, b"good 3") == 3
    assert (decoder.why_not_ready, decoder._spawner.zygote) == (None, zygote)
    await settled(decoder)
    assert (decoder._spawner.zygote, restarts) == (zygote, {"killed": 1, "start": 1})
    assert [worker.state for worker in decoder._workers] == [State.IDLE] * 2
    assert killed not in pids(decoder)


async def test_close_during_a_fork_leaves_nothing(open_decoder: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = await open_decoder()
    fork, made, closed = decoder._spawner.zygote._fork, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fork_while_it_closes(*arguments: Any) -> WorkerProcess:
        forked = fork(*arguments)
        loop.call_soon_threadsafe(made.set)
        closed.wait(60)
        return forked

    monkeypatch.setattr(decoder._spawner.zygote, "_fork", fork_while_it_closes)
    call = asyncio.create_task(decoder.decode(b"exit"))
    await made.wait()
    closing = asyncio.create_task(decoder.close())
    await asyncio.sleep(0)
    closed.set()
    await closing
    with pytest.raises(Draining):
        await call
    assert pids(decoder) == []


SERVICE = """
import asyncio, os, uvloop
from app.decoding.pool.zygote import Zygote
from app.decoding.pool.job import Job
from app.decoding.pool.processes import ProcessDecoder
from tests.support.pool import JOB, LIGHT, pids

async def main() -> None:
    zygote = Zygote(LIGHT)
    print(zygote._process.pid, flush=True)
    if {wait}:
        decoder = ProcessDecoder(zygote, JOB, processes=2, on_restart=print)
        decoder.warm_up()
        decoder.start()
        hanging = asyncio.create_task(decoder.decode(b"spin"))
        await decoder.decode(b"good 1")
        print(*pids(decoder), flush=True)
    await asyncio.sleep(3600)

uvloop.run(main())
"""


@pytest.mark.parametrize("wait", [False, True], ids=["starting", "decoding"])
def test_killed_service_leaves_no_process(wait: bool) -> None:
    command = [sys.executable, "-c", SERVICE.format(wait=wait)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        left = [int(pid) for _ in range(1 + wait) for pid in service.stdout.readline().split()]
        service.kill()
    assert len(left) == (3 if wait else 1)
    for pid in left:
        wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    give_up_at = time.monotonic() + 30
    while exists(pid):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("job", "why"),
    [
        pytest.param({"preprocessor": Preprocessor(faults.abort, faults.SHAPE)}, "it ended while it started", id="aborts"),
        pytest.param({"probe": b"signal 11"}, "it ended at once, with SIGSEGV", id="crashes"),
        pytest.param({"probe": b"raise"}, "RuntimeError at faults.py", id="raises"),
        pytest.param({"probe": b"eat"}, "does not fit into memory", id="without-memory"),
    ],
)
async def test_failed_probe_is_start_error(job: dict[str, Any], why: str) -> None:
    decoder = ProcessDecoder(Zygote(LIGHT), replace(JOB, **job), processes=1, on_restart=lambda _: None)
    with pytest.raises(StartError, match=f"VIT_DECODE_ISOLATION: .*({why})"):
        await asyncio.to_thread(decoder.warm_up)
    await decoder.close()


def test_shared_memory_cannot_be_resized() -> None:
    memory = _shared_memory(4096)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)
        assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    finally:
        os.close(memory)


async def test_damaged_images_cost_no_worker(open_decoder: Open) -> None:
    image_decoder = decoders.decoder(Preprocessing(32, (28, 28), "bicubic", decoders.HALF, decoders.HALF), exact=False)
    memory_bytes = needed_bytes(1_000_000, 100_000)
    job = {"probe": encode(random_image(1)), "preprocessor": Preprocessor(image_decoder.decode, (3, 28, 28))}
    decoder, restarts = await open_decoder(**job, memory_bytes=memory_bytes)
    rng = random.Random(0)
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO"):
        good = encode(random_image(3, 80, 60), image_format)
        expected = image_decoder.decode(good)
        for _ in range(100):
            try:
                await decoder.decode(broken(good, rng))
            except ServiceError as error:
                assert error.code in ("undecodable_image", "unsupported_image_format", "image_too_large")
        assert np.array_equal((await decoder.decode(good)).pixels, expected)
    assert not restarts


def broken(image: bytes, rng: random.Random) -> bytes:
    """Cut an image off, or change up to 16 of its bytes."""
    if rng.random() < 0.3:
        return image[: rng.randrange(1, len(image))]
    changed = bytearray(image)
    for _ in range(rng.randint(1, 16)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)

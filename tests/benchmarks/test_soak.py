"""Verdicts of the soak."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import numpy as np
import pytest

from benchmarks.attackers import PARTS, Attackers, Periods, decoders_of, hostile_bodies
from benchmarks.clients import Clients, KnownImage, Tally
from benchmarks.soak import Moment, Soak, verdicts
from benchmarks.watch import Usage
from tests.support.models import encode, random_image
from tests.support.server import running_server

_MIB = 2**20
_REFUSED = 'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="429"}'
_PREDICTED = 'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="200"}'
_IDLE = {"vit_inflight_images": 0.0, "vit_queued_images": 0.0, "vit_inflight_requests": 0.0, "vit_inflight_bytes": 0.0}


def soak(
    *,
    answered: int = 100,
    vanished: int = 0,
    refused: int = 0,
    wrong: int = 0,
    unanswered: int = 0,
    resident_bytes: tuple[int, ...] = (500 * _MIB,) * 20,
    files: int = 16,
    threads: int = 20,
    exit_status: int | None = 0,
    latencies_s: Mapping[str, Sequence[float]] = MappingProxyType({}),
    health_s: Mapping[str, Sequence[float]] = MappingProxyType({}),
    lost_while_idle: float = 0,
    **metrics: float,
) -> Soak:
    """Return a soak of a hundred answered images with the given deviations."""
    tally = Tally(
        kinds=Counter(raw=100),
        answered=Counter({("/predict", "200"): answered, ("/predict", "429"): refused}),
        vanished=vanished,
        wrong=["no"] * wrong,
        unanswered=Counter(raw=unanswered),
        images=answered,
        timed=[(0.0, 0.1)] * 10,
    )
    counted = {
        _PREDICTED: 150.0,
        'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="429"}': float(refused),
    }
    before, after = Moment(Usage(0, 16, 20), {_PREDICTED: 50.0}), Moment(Usage(0, files, threads), _IDLE | counted | metrics)
    return Soak(10.0, tally, resident_bytes, before, after, exit_status, latencies_s, health_s, 0, lost_while_idle)


def missed(run: Soak) -> list[str]:
    return [verdict.what for verdict in verdicts(run) if not verdict.met]


def test_healthy_service_meets_every_goal() -> None:
    assert missed(soak()) == []
    assert missed(soak(answered=98, vanished=2)) == []
    assert missed(soak(refused=3)) == []


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (soak(wrong=1), "wrong answers"),
        (soak(unanswered=1), "unanswered requests"),
        (soak(refused=6), "refused with Retry-After"),
        (soak(answered=99), "metrics that differ from answers"),
        (soak(answered=101), "metrics that differ from answers"),
        (soak(resident_bytes=tuple(range(500 * _MIB, 540 * _MIB, 2 * _MIB))), "memory growth"),
        (soak(files=40), "open files at the end"),
        (soak(threads=40), "threads at the end"),
        (soak(vit_queued_images=1.0), "queue at the end"),
        (soak(exit_status=1), "exit status on SIGTERM"),
        (soak(exit_status=None), "exit status on SIGTERM"),
        (soak(lost_while_idle=1), "decoders restarted while idle"),
        (soak(latencies_s={"calm": [0.01] * 9, "large batches": [0.04] * 9}), "p99 of single images: large batches"),
        (soak(health_s={"hostile bodies": [0.11] * 9}), "p99 of /health/live: hostile bodies"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fault_misses_its_goal(run: Soak, what: str) -> None:
    assert missed(run) == [what]


def test_unseen_fault_is_in_counters() -> None:
    run = soak(vanished=1)
    fault = {'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="500"}': 1.0}
    run = replace(run, after=Moment(run.after.usage, {**run.after.metrics, **fault}))
    assert missed(run) == ["5xx other than 503"]


async def test_swapped_answer_is_noticed(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        image = KnownImage(encode(random_image(0, 120, 100), "JPEG"), np.arange(10.0))
        clients = Clients(int(urlsplit(server.url).port or 0), [image], 50_000, seed=0)
        good = (clients.raw, clients.multipart, clients.base64, clients.slow, clients.batch)
        await asyncio.gather(*(call(time.perf_counter()) for call in good))
        clients.close()
    assert (clients.tally.images, len(clients.tally.wrong)) == (0, 4 + 3)


def test_parts_of_a_minute_follow_in_order() -> None:
    periods = Periods(began=100.0, period_s=60.0)
    assert [periods.part(100 + second) for second in (0, 30, 37, 45, 55)] == [
        "usual",
        "calm",
        "kills",
        "large batches",
        "hostile bodies",
    ]
    assert periods.next_begin("kills", 100.0) == periods.next_begin("kills", 130.0) == 136.0
    assert periods.next_begin("kills", 137.0) == 196.0
    assert sum(map(periods.seconds, PARTS)) == pytest.approx(60)


async def test_attackers_are_answered(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, decode_workers=2) as server:
        image = KnownImage(encode(random_image(0)), np.arange(10.0))
        clients = Clients(int(urlsplit(server.url).port or 0), [image], 50_000, seed=0)
        attackers = Attackers(clients, server.process.pid, Periods(0.0, 60.0))
        assert len(decoders_of(server.process.pid)) == 2
        while not attackers.kills:
            await attackers._kill()
        for number in range(len(hostile_bodies())):
            await attackers._sender(number)()
        clients.close()
    assert (clients.tally.unanswered, clients.tally.kinds) == ({}, {"hostile body": len(hostile_bodies())})
    assert {status for _, status in clients.tally.answered} <= {"200", "400", "413", "422", "429", "431"}

"""Decoding pools with the faulty decoders of tests."""

import asyncio
from pathlib import Path

from app.decoding import Preprocessor
from app.decoding.pool.job import Job
from app.decoding.pool.processes import ProcessDecoder
from tests.app.decoding.pool import faults

JOB = Job(
    Preprocessor(faults.decode, faults.SHAPE), max_image_bytes=100_000, memory_bytes=256 << 20, timeout_s=60, probe=b"good 0"
)
LIGHT = "app.errors"
"""Module for the zygote to import: these decoders need neither torch nor Pillow."""


def pids(decoder: ProcessDecoder) -> list[int]:
    return [worker.process.pid for worker in decoder._workers]


async def settled(decoder: ProcessDecoder) -> None:
    """Wait until every worker has a process again."""
    while decoder._replacing:
        await asyncio.wait(decoder._replacing)


def exists(pid: int) -> bool:
    """Return True if a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

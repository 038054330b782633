"""Backlog: the times of an image, whatever becomes of its worker."""

import asyncio

import numpy as np

from app.decoding.pool.backlog import Backlog


async def test_time_with_a_lost_worker_is_waiting() -> None:
    backlog = Backlog(1, lambda: None)
    call = asyncio.create_task(backlog.decode(b"image", None, None))
    await asyncio.sleep(0)
    lost = backlog.take()
    assert lost is not None
    await asyncio.sleep(0.02)
    backlog.put_back(lost)
    turn = backlog.take()
    assert turn is not None
    backlog.settle(turn, np.zeros((3, 2, 2), np.uint8))
    decoded = await call
    assert decoded.decode_s < decoded.wait_s

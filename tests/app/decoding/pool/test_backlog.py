"""Backlog: the times of an image, whatever becomes of its worker."""

import asyncio

import numpy as np
import pytest

from app.decoding import Decoded
from app.decoding.pool.backlog import Backlog
from app.errors import Draining


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


async def test_refused_hand_over_is_the_outcome() -> None:
    def refuse(_: Decoded) -> None:
        raise Draining("The service is shutting down.", 1.0)

    backlog = Backlog(1, lambda: None)
    call = asyncio.create_task(backlog.decode(b"image", None, None, refuse))
    await asyncio.sleep(0)
    turn = backlog.take()
    assert turn is not None
    backlog.settle(turn, np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(Draining):
        await call
    assert backlog.take() is None

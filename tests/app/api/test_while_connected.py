"""while_connected: the client may leave at any moment, also in that in which the work is done."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api.dependencies import while_connected


class Client:
    """Request whose client leaves when `gone` is set."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def answered(client: Any, work: "asyncio.Future[str]") -> str:
    result = await while_connected(client, work)
    for _ in range(3):  # a route that writes its answer
        await asyncio.sleep(0)
    return result


@pytest.mark.parametrize("turns", [None, 0, 1, 2, 3, 4], ids=str)
async def test_no_cancellation_outlives_the_work(turns: int | None) -> None:
    """The client leaves after the work is done (None), or so many turns of the event loop before."""
    client, work = Client(), asyncio.get_running_loop().create_future()
    route = asyncio.create_task(answered(client, work))
    await asyncio.sleep(0)
    if turns is not None:
        client.gone.set()
        for _ in range(turns):
            await asyncio.sleep(0)
    if not work.done():
        work.set_result("done")
    client.gone.set()
    with suppress(ClientDisconnect):  # also if the work was done in the same moment
        assert await route == "done"
    assert not route.cancelled()


async def test_error_of_the_work_is_kept() -> None:
    client, work = Client(), asyncio.get_running_loop().create_future()
    route = asyncio.create_task(answered(client, work))
    await asyncio.sleep(0)
    work.set_exception(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await route


async def test_other_cancellations_pass() -> None:
    client, work = Client(), asyncio.get_running_loop().create_future()
    route = asyncio.create_task(answered(client, work))
    await asyncio.sleep(0)
    route.cancel()
    with pytest.raises(asyncio.CancelledError):
        await route

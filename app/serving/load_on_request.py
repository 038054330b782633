"""LoadsForRequests: loads of models that requests name while they are not loaded (`VIT_LOAD_ON_REQUEST`)."""

import asyncio
from collections.abc import Awaitable, Callable

from app.errors import Draining, InsufficientMemory, LoadFailed, NotReady
from app.serving.served_model import ServedModel

_RETRY_AFTER_S = 2.0


class LoadsForRequests:
    """One load of each model at a time, for all requests that wait for it.

    Args:
        load: loads a model; raises as `ModelLoader.load`.
    """

    def __init__(self, load: Callable[[ServedModel], Awaitable[None]]) -> None:
        self._load = load
        self._tasks: dict[ServedModel, asyncio.Task[None]] = {}

    async def wait(self, model: ServedModel, deadline: float) -> None:
        """Load a model, or wait for the load that another request began.

        Args:
            model: the model, which is not loaded.
            deadline: time of the event loop's clock after which it is of no use.

        Raises:
            NotReady: it is not loaded within the deadline, or cannot be, or failed a moment ago.
            Draining: the service was closed meanwhile.
        """
        task = self._tasks.get(model) or self._begin(model)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(task)
        except TimeoutError:
            raise NotReady(f"The model {model.name} is still loading.", _RETRY_AFTER_S) from None
        except (LoadFailed, InsufficientMemory) as error:
            raise NotReady(str(error), max(_RETRY_AFTER_S, model.backoff.remaining_s)) from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise Draining("The service is shutting down.", _RETRY_AFTER_S) from None
            raise

    def cancel(self) -> None:
        """Give up all loads; requests that wait fail with `Draining`."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, model: ServedModel) -> asyncio.Task[None]:
        if pause_s := model.backoff.remaining_s:
            raise NotReady(f"The model {model.name} cannot be loaded: {model.why_not_loaded}", pause_s)
        task = self._tasks[model] = asyncio.create_task(self._run(model), name=f"load {model.name}")
        task.add_done_callback(lambda ended: self._end(model, ended))
        return task

    async def _run(self, model: ServedModel) -> None:
        await self._load(model)

    def _end(self, model: ServedModel, task: asyncio.Task[None]) -> None:
        self._tasks.pop(model, None)
        if not task.cancelled():
            task.exception()  # retrieved: those who waited may have gone

"""ModelLoader: loads versions of models beside those that answer, and frees them, within a bound on their memory."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import structlog

from app.engines.memory import memory_in_use, return_unused
from app.errors import Draining, InsufficientMemory, LoadFailed, StartError
from app.metrics import Metrics
from app.process.cpu import lower_priority
from app.process.startup import BUG, explain
from app.serving.classifier import Classifier
from app.serving.model_list import ModelSpec
from app.serving.served_model import ServedModel, Version
from app.serving.shared import Shared
from app.settings import Settings

Load = Callable[[ModelSpec, Metrics, Shared, Callable[[int], None]], Classifier]
"""Function that loads a model, as `load_classifier` does. Blocks."""

_PARAMETER_BYTES, _MOST_PARAMETER_BYTES = 4, 8
"""What a parameter takes where no model has been measured yet, and at most by estimate: the first model's memory includes what
its engine itself needs."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ModelLoader:
    """Changes which versions answer. One change is in progress at a time: two would compete for memory and cores.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        load: loads a model, in a thread.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Load) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._changing = asyncio.Lock()
        self._loaded: list[ServedModel] = []
        self._stopped = False
        self.on_death: Callable[[], None] = lambda: None
        """Called if an engine dies, after everything queued has failed."""
        # not asyncio's default pool: the loop would wait for it at its end, and a load cannot be interrupted
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=lower_priority)
        # another, because a load waits for what it frees
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="free", initializer=lower_priority)

    @property
    def bytes(self) -> int:
        """Memory of all models that are loaded."""
        return sum(model.bytes for model in self._loaded)

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        """Call a function that blocks, in the thread that loads."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def load(
        self, model: ServedModel, shared: Shared, spec: ModelSpec | None = None, *, unload_first: bool = False
    ) -> None:
        """Load a model, and have it answer from the next request on; then free the version before it.

        Args:
            model: the model.
            shared: what models share.
            spec: what to load. Default: what the model is now.
            unload_first: free the version before it first, where there is no memory for both; meanwhile none answers.

        Raises:
            LoadFailed: it cannot be loaded; the version before it still answers, unless it was unloaded first.
            InsufficientMemory: all models together may not take so much memory.
            Draining: the service is shutting down.
        """
        async with self._changing:
            if self._stopped:
                raise Draining("The service is shutting down.", 1.0)
            if unload_first:
                await self._free(model)
            try:
                await self.swap(model, shared, spec or model.spec, may_unload=self._settings.unload_unused)
            except InsufficientMemory as error:
                self._report(model, str(error))
                raise
            except Exception as error:
                known = error if isinstance(error, StartError) else explain(error, "loading the model")
                self._report(model, BUG if known is None else str(known), bug=known is None)
                raise LoadFailed(f"{model.name} cannot be loaded: {model.why_not_loaded}") from error

    async def unload(self, model: ServedModel) -> None:
        """Have a model answer no more, and free it once the requests that hold it have ended."""
        async with self._changing:
            await self._free(model)

    async def swap(self, model: ServedModel, shared: Shared, spec: ModelSpec, *, may_unload: bool = False) -> None:
        """Load a model and have it answer, as `load` does, with the exceptions of the function that loads.

        Args:
            model: the model.
            shared: what models share.
            spec: what to load.
            may_unload: permission to unload other models where memory lacks.
        """
        began = time.monotonic()
        _log.info("loading", model=spec.settings.model)
        model.loading = True
        try:
            loop = asyncio.get_running_loop()
            classifier, size = await self.in_thread(self._load_and_measure, model, shared, spec, loop, may_unload)
            try:
                await self._make_room(model, size, may_unload=may_unload)
            except InsufficientMemory:
                await classifier.close()
                del classifier
                await self._return_unused()
                raise
        finally:
            model.loading = False
        classifier.start(self.on_death)
        before = model.put(Version(classifier, size))
        model.why_not_loaded = ""
        model.backoff.reset()
        self._show(model, size)
        if model not in self._loaded:
            self._loaded.append(model)
        _log.info("loaded", model=model.label, mebibytes=round(size / 2**20), seconds=round(time.monotonic() - began, 1))
        del classifier
        if before is not None:
            await self._close(before)

    def stop(self) -> None:
        """Begin no load any more."""
        self._stopped = True
        for pool in (self._thread, self._aside):
            pool.shutdown(wait=False, cancel_futures=True)

    def _load_and_measure(
        self,
        model: ServedModel,
        shared: Shared,
        spec: ModelSpec,
        loop: asyncio.AbstractEventLoop,
        may_unload: bool,
    ) -> tuple[Classifier, int]:
        async def reserve_in_loop(parameters: int) -> None:
            await self._make_room(model, self._expected_bytes(parameters), may_unload=may_unload)

        def reserve(parameters: int) -> None:
            asyncio.run_coroutine_threadsafe(reserve_in_loop(parameters), loop).result()

        return_unused()  # of what came before
        before = memory_in_use()
        classifier = self._load(spec, self._metrics, shared, reserve)
        return_unused()
        return classifier, max(0, memory_in_use().growth(before, classifier.model.device))

    async def _make_room(self, model: ServedModel, needed: int, *, may_unload: bool) -> None:
        """Unload what was used least recently, where that is allowed and of use, until a version of this size fits.

        Raises:
            InsufficientMemory: it does not fit.
        """
        if (limit := self._settings.max_model_bytes) is None:
            return
        fits_alone = model.bytes + needed <= limit
        while self.bytes + needed > limit:
            others = [other for other in self._loaded if other is not model]
            if not (others and may_unload and fits_alone):
                raise _too_large(model.name or model.spec.settings.model, needed, self.bytes, limit)
            await self._free(min(others, key=lambda other: other.last_used))

    def _expected_bytes(self, parameters: int) -> int:
        """Return what a model will take, by what those that are loaded took for each parameter."""
        versions = [model.version for model in self._loaded if model.version is not None]
        least = min((version.bytes / max(1, version.classifier.model.parameters) for version in versions), default=None)
        return round(parameters * (_PARAMETER_BYTES if least is None else min(least, _MOST_PARAMETER_BYTES)))

    async def _free(self, model: ServedModel) -> None:
        before = model.put(None)
        if before is None:
            return
        self._loaded.remove(model)
        self._metrics.of_model(model.label).unloaded()
        _log.info("unloading", model=model.name)
        await self._close(before)

    async def _close(self, version: Version) -> None:
        # no request takes longer than its own limit
        await version.drain(max(self._settings.drain_timeout_s, self._settings.request_timeout_s))
        await self._return_unused()

    async def _return_unused(self) -> None:
        if not self._stopped:
            await asyncio.get_running_loop().run_in_executor(self._aside, return_unused)

    def _show(self, model: ServedModel, size: int) -> None:
        metrics = self._metrics.of_model(model.label)
        metrics.bytes.set_function(partial(int, size))
        metrics.ready.set_function(lambda: model.why_not_ready is None)
        metrics.loads("ok").inc()

    def _report(self, model: ServedModel, reason: str, *, bug: bool = False) -> None:
        model.why_not_loaded = reason
        model.backoff.fail()
        if model.label:
            self._metrics.of_model(model.label).loads("failed").inc()
        still = "the version before it still answers" if model.version is not None else "it does not answer"
        _log.error("a model could not be loaded", model=model.name, reason=reason, so=still, exc_info=bug)


def _too_large(name: str, size: int, taken: int, limit: int) -> InsufficientMemory:
    needed, others, most = (round(count / 2**20) for count in (size, taken, limit))
    return InsufficientMemory(
        f"{name} needs {needed} MiB beside the {others} MiB of loaded models, and VIT_MAX_MODEL_BYTES allows {most} MiB in all."
    )

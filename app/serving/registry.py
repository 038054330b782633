"""Registry: the models of a service by name, their readiness, and changes of the list of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from app.decoding import Decoder
from app.errors import InsufficientMemory, LoadFailed, ModelNotFound, NotReady, StartError
from app.metrics import Metrics
from app.serving.model_list import ModelList, read_model_list
from app.serving.model_loader import Load, ModelLoader
from app.serving.served_model import ServedModel
from app.serving.shared import Shared
from app.settings import Settings

MakeDecoder = Callable[[Settings, Metrics], Decoder]
"""Function that makes the decoder of a service, as `make_decoder` does. Blocks."""

_LOADING = "The model is still loading."
_RETRY_AFTER_S = 2.0
_LOOK_S = 2.0
"""Seconds between two looks at the file of models."""

_log = structlog.get_logger(__name__)


class Registry:
    """Models of a service. The first one answers requests that name none.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        load: loads a model.
        make_decoder: makes the decoder that models share; called in a thread. Its processes import while the first model loads.

    Raises:
        StartError: the list of models cannot be used.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Load, make_decoder: MakeDecoder) -> None:
        self._settings = settings
        self._metrics = metrics
        self._make_decoder = make_decoder
        self._list = read_model_list(settings)
        self.models = tuple(ServedModel(spec) for spec in self._list.models)
        self._loader = ModelLoader(settings, metrics, load)
        self._shared: Shared | None = None
        self._started = False
        self._rereading = asyncio.Lock()
        self._for_requests: dict[ServedModel, asyncio.Task[None]] = {}
        self._unusable = ""
        # not asyncio's default pool: the loop would wait at its end for a disk that does not answer
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read models")

    @property
    def shared(self) -> Shared:
        """What the models share.

        Raises:
            NotReady: the service is still loading.
        """
        if self._shared is None:
            raise NotReady(_LOADING, _RETRY_AFTER_S)
        return self._shared

    @property
    def why_not_ready(self) -> str | None:
        """Reason why no request is accepted now, in one sentence; None if requests are. A model that is unloaded is none."""
        if self._shared is None or not self._started:
            if len(self.models) == 1:
                return _LOADING
            ready = sum(model.state == "ready" for model in self.models)
            return f"Models are still loading: {ready} of {len(self.models)} are ready."
        broken = (model.why_not_ready for model in self.models if model.version is not None)
        return self._shared.decoder.why_not_ready or next(filter(None, broken), None)

    def find(self, name: str | None) -> ServedModel:
        """Return the model of a name or alias, or the default.

        Raises:
            ModelNotFound: there is none.
        """
        if name is None:
            return self.models[0]
        for model in self.models:
            if name in model.names:
                return model
        served = ", ".join(name for model in self.models for name in model.names)
        raise ModelNotFound(f"There is no model {name[:128]!r}; served are {served}.")

    async def start(self, on_death: Callable[[], None]) -> None:
        """Load all models.

        Args:
            on_death: called if an engine dies, after everything queued has failed.

        Raises:
            StartError: one of them cannot be loaded.
        """
        self._loader.on_death = on_death
        decoder = await self._loader.in_thread(self._make_decoder, self._settings, self._metrics)
        self._shared = shared = Shared(self._settings, self._metrics, decoder)
        for model in self.models:
            try:
                await self._loader.swap(model, shared)
            except InsufficientMemory as error:
                raise StartError(str(error)) from error
        await self._loader.in_thread(shared.warm_up)
        shared.start()
        self._started = True
        default = self.models[0].ready_version().classifier.describe()
        _log.info(
            "ready",
            model=default.name,
            engine=default.engine,
            device=default.device,
            dtype=default.dtype,
            classes=len(default.labels),
            labels=default.labels_source,
            activation=default.activation,
            models=len(self.models),
        )

    async def load(self, model: ServedModel, *, unload_first: bool = False) -> None:
        """See `ModelLoader.load`."""
        await self._loader.load(model, self.shared, unload_first=unload_first)

    async def unload(self, model: ServedModel) -> None:
        """See `ModelLoader.unload`."""
        await self._loader.unload(model)

    async def load_for_request(self, model: ServedModel, deadline: float) -> None:
        """Load a model that a request names, if it is not loaded and the settings allow it. All who wait share one load.

        Raises:
            NotReady: it is not loaded within the deadline, or cannot be.
        """
        if model.version is not None or not self._settings.load_on_request:
            return
        if (task := self._for_requests.get(model)) is None:
            task = self._for_requests[model] = asyncio.create_task(self.load(model), name=f"load {model.name}")
            task.add_done_callback(lambda _: self._for_requests.pop(model))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(task)
        except TimeoutError:
            raise NotReady(f"The model {model.name} is still loading.", _RETRY_AFTER_S) from None
        except (LoadFailed, InsufficientMemory) as error:
            raise NotReady(str(error), 10 * _RETRY_AFTER_S) from None

    async def reread(self) -> None:
        """Read the list of models again: load what is new or has other settings, and unload what is gone. Faults are logged."""
        async with self._rereading:
            try:
                listed = await asyncio.get_running_loop().run_in_executor(self._reader, read_model_list, self._settings)
            except StartError as error:
                if str(error) != self._unusable:
                    _log.error("the list of models cannot be used; the models stay as they are", reason=str(error))
                self._unusable = str(error)
                return
            self._unusable = ""
            if self._started and listed != self._list:
                await self._apply(listed)

    async def watch(self) -> None:
        """Read the file of models again whenever it changes, until cancelled."""
        while self._settings.models_file is not None:
            await asyncio.sleep(_LOOK_S)
            await self.reread()

    async def close(self) -> None:
        """Stop all models; everything queued or in flight fails with `Draining`."""
        self._loader.stop()
        self._reader.shutdown(wait=False)
        for task in self._for_requests.values():
            task.cancel()
        for model in self.models:
            if (version := model.put(None)) is not None:
                await version.drain(0)
        if self._shared is not None:
            await self._shared.close()

    async def _apply(self, listed: ModelList) -> None:
        known = {model.spec.name: model for model in self.models}
        models, changed = [], []
        for spec in listed.models:
            served = known.pop(spec.name, None)
            model = served or ServedModel(spec)
            if served is None or served.spec.settings != spec.settings:
                changed.append(model)
            model.spec = spec
            models.append(model)
        _log.info("the list of models has changed", models=len(models), to_load=len(changed), to_unload=len(known))
        self._list = listed
        for model in changed:
            with suppress(LoadFailed, InsufficientMemory):  # which are logged
                await self.load(model)
        self.models = tuple(models)
        for model in known.values():
            await self.unload(model)

"""Registry: the models of a service by name, their readiness, and changes of the list of them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from app.decoding import Decoder
from app.errors import InsufficientMemory, LoadFailed, ModelNotFound, NotReady, StartError
from app.metrics import Metrics
from app.serving.load_on_request import LoadsForRequests
from app.serving.model_list import ModelList, ModelSpec, read_model_list
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
_NAMED = 20
"""Models that a refusal names."""

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
        self._by_name: dict[str, ServedModel] = {}
        self._loader = ModelLoader(settings, metrics, load)
        self._shared: Shared | None = None
        self._started = False
        self._rereading = asyncio.Lock()
        self._failed: dict[ServedModel, ModelSpec] = {}
        self._for_requests = LoadsForRequests(self.load)
        self._unusable = ""
        # not asyncio's default pool: the loop would wait at its end for a disk that does not answer
        self._beside_loads = ThreadPoolExecutor(1, thread_name_prefix="beside loads")
        self._index()

    @property
    def shared(self) -> Shared:
        """Parts that the models share.

        Raises:
            NotReady: the service is still loading.
        """
        if self._shared is None or not self._started:
            raise NotReady(_LOADING, _RETRY_AFTER_S)
        return self._shared

    @property
    def why_not_accepting(self) -> str | None:
        """Reason why no request is accepted now, whichever model it is for, in one sentence; None if requests are."""
        if self._shared is not None and self._started:
            return self._shared.decoder.why_not_ready
        if len(self.models) == 1:
            return _LOADING
        ready = sum(model.state == "ready" for model in self.models)
        return f"Models are still loading: {ready} of {len(self.models)} are ready."

    @property
    def why_not_ready(self) -> str | None:
        """Reason why the service is not ready, in one sentence; None if it is. A model that is not loaded is none."""
        broken = (model.why_not_ready for model in self.models if model.version is not None)
        return self.why_not_accepting or next(filter(None, broken), None)

    def has(self, name: str) -> bool:
        """Return True if a model has this name or alias."""
        return name in self._by_name

    def find(self, name: str | None) -> ServedModel:
        """Return the model of a name or alias, or the default.

        Raises:
            ModelNotFound: there is none.
        """
        if name is None:
            return self.models[0]
        if (model := self._by_name.get(name)) is not None:
            return model
        names = list(self._by_name)
        served = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        raise ModelNotFound(f"There is no model {name[:128]!r}; served are {served}.")

    async def start(self, on_death: Callable[[], None]) -> None:
        """Load all models; with `VIT_UNLOAD_UNUSED` those that there is room for.

        Args:
            on_death: called if an engine dies, after everything queued has failed.

        Raises:
            StartError: one of them cannot be loaded.
        """
        self._loader.on_death = on_death
        decoder = await self._loader.in_thread(self._make_decoder, self._settings, self._metrics)
        self._shared = shared = Shared(self._settings, self._metrics, decoder)
        decoding = asyncio.get_running_loop().run_in_executor(self._beside_loads, shared.warm_up)  # while models load
        decoding.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # retrieved, if a model fails first
        for model in self.models:
            try:
                await self._loader.swap(model, shared, model.spec)
            except InsufficientMemory as error:
                if not self._settings.unload_unused:
                    raise StartError(str(error)) from error
                _log.warning("not loaded at the start", model=model.name, reason=str(error))
            except StartError as error:
                raise StartError(f"{model.name}: {error}" if len(self.models) > 1 else str(error)) from error
        await decoding
        shared.start()
        self._index()
        self._started = True
        _log_ready(self.models)

    async def load(self, model: ServedModel, *, unload_first: bool = False) -> None:
        """Load a model again, as the list has it now; see `ModelLoader.load`."""
        spec = self._failed.get(model, model.spec)
        await self._loader.load(model, self.shared, spec, unload_first=unload_first)
        self._settle(model, spec)

    async def unload(self, model: ServedModel) -> None:
        """See `ModelLoader.unload`."""
        self._failed.pop(model, None)
        await self._loader.unload(model)

    async def load_for_request(self, model: ServedModel, deadline: float) -> None:
        """Load a model that a request names if it is not loaded and the settings allow it; as `LoadsForRequests.wait`."""
        if model.version is None and self._settings.load_on_request:
            await self._for_requests.wait(model, deadline)

    async def reread(self) -> set[ServedModel]:
        """Read the list of models again: load what is new or has other settings, and unload what is gone. Faults are logged.

        Returns:
            The models that were loaded.
        """
        async with self._rereading:
            if not self._started:
                return set()
            try:
                listed = await asyncio.get_running_loop().run_in_executor(self._beside_loads, self._read_again)
            except StartError as error:
                if str(error) != self._unusable:
                    _log.error("the list of models cannot be used; the models stay as they are", reason=str(error))
                self._unusable = str(error)
                return set()
            self._unusable = ""
            if listed != self._list:
                return await self._apply(listed)
            due = {model: spec for model, spec in self._failed.items() if not model.backoff.remaining_s}
            return await self._load_all(due)

    async def watch(self) -> None:
        """Read the file of models again whenever it changes, and try again what could not be loaded, until cancelled."""
        while self._settings.models_file is not None:
            await asyncio.sleep(_LOOK_S)
            await self.reread_and_log()

    async def reread_and_log(self) -> None:
        """Read the list of models again, and log whatever goes wrong."""
        try:
            await self.reread()
        except Exception:
            _log.exception("the list of models could not be brought into force")

    async def close(self) -> None:
        """Stop all models; everything queued or in flight fails with `Draining`."""
        self._loader.stop()
        self._beside_loads.shutdown(wait=False)
        self._for_requests.cancel()
        for model in self.models:
            if (version := model.put(None)) is not None:
                await version.drain(0)
        if self._shared is not None:
            await self._shared.close()

    def _read_again(self) -> ModelList:
        """Read the list, unless the file has not changed. Blocks."""
        return read_model_list(self._settings, self._list)

    async def _apply(self, listed: ModelList) -> set[ServedModel]:
        """Load what has changed, have all names of the list mean what it says, and unload what is gone."""
        known: dict[str | None, ServedModel] = {model.spec.name: model for model in self.models}
        models = [known.pop(spec.name) if spec.name in known else ServedModel(spec) for spec in listed.models]
        specs = dict(zip(models, listed.models, strict=True))
        changed = {
            model: spec
            for model, spec in specs.items()
            if model not in self.models or model in self._failed or model.spec.settings != spec.settings
        }
        gone = list(known.values())
        _log.info("the list of models has changed", models=len(models), to_load=len(changed), to_unload=len(gone))
        self._failed = {}
        loaded = await self._load_all(changed)
        self._list = listed
        for model, spec in specs.items():
            model.spec = replace(model.spec, aliases=spec.aliases)
        default = self.models[0]
        if models[0].version is None and default in models:  # the one before answers until the new default does
            models.sort(key=lambda model: model is not default)
        self.models = tuple(models)
        self._index()
        for model in gone:
            await self._loader.unload(model)
            self._metrics.forget_model(model.label)
        # once more what had no room beside those that are gone
        return loaded | await self._load_all(dict(self._failed) if gone else {})

    async def _load_all(self, specs: Mapping[ServedModel, ModelSpec]) -> set[ServedModel]:
        """Load models, and remember those that could not be."""
        loaded = set()
        for model, spec in specs.items():
            try:
                await self._loader.load(model, self.shared, spec)
            except (LoadFailed, InsufficientMemory):  # which are logged
                self._failed[model] = spec
            else:
                self._settle(model, spec)
                loaded.add(model)
        return loaded

    def _settle(self, model: ServedModel, spec: ModelSpec) -> None:
        """Note that a model has been loaded as a list has it; its aliases change with those of all others."""
        self._failed.pop(model, None)
        model.spec = replace(spec, aliases=model.spec.aliases)

    def _index(self) -> None:
        self._by_name = {name: model for model in self.models for name in model.names if name}


def _log_ready(models: Sequence[ServedModel]) -> None:
    """Log what the default model is, and how many there are."""
    version = models[0].version
    if version is None:
        _log.info("ready", model=models[0].name, models=len(models))
        return
    default = version.classifier.describe()
    _log.info(
        "ready",
        model=default.name,
        engine=default.engine,
        device=default.device,
        dtype=default.dtype,
        classes=len(default.labels),
        labels=default.labels_source,
        activation=default.activation,
        models=len(models),
    )

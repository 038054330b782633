"""A model's settings -> its engine: of what an earlier start kept, of a conversion by another process, or by torch here."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.converting.process import ConversionFailed, NowhereToKeep, converted
from app.converting.request import ConversionRequest, explained_checkpoint_error
from app.engines import Engine
from app.engines.kept_model import KeptModel
from app.engines.select import (
    OPENVINO,
    EngineOptions,
    choose_engine,
    fall_back,
    kind_of_engine,
    may_fall_back,
    openvino_dtype,
    openvino_options,
    take_cores,
    tell_faster_dtype,
)
from app.errors import StartError
from app.process.cpu import at_lowest_priority
from app.process.startup import OnStep
from app.settings import Settings
from model.checkpoints.description import Description
from model.checkpoints.files import CheckpointError
from model.checkpoints.location import Location, locate

if TYPE_CHECKING:  # importing it takes seconds
    from model.checkpoints.checkpoint import Checkpoint

Accept = Callable[[Description], None]
"""Function that is told what a model is before memory is taken for it, and may raise."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its engine."""

    description: Description
    engine: Engine
    mapped: Path | None = None
    """File of weights that the engine reads again for its first batches, until it has all in layouts of its own."""


def load_engine(settings: Settings, accept: Accept, on_step: OnStep, *, low_priority: bool = False) -> LoadedModel:
    """Load a model onto its engine. Blocks, for a fraction of a second to minutes.

    For OpenVINO this process never imports torch, unless nothing else is left: a checkpoint that the cache has not, or has
    otherwise, is loaded and converted in a process of its own.

    Args:
        settings: those of the model.
        accept: told what it is.
        on_step: told what is done next.
        low_priority: leave the cores to other models, which serve.

    Raises:
        StartError: the checkpoint cannot be served, or the device is missing.
    """
    options = engine_options(settings, low_priority=low_priority)
    if kind_of_engine(options) != "openvino":
        return _load_here(settings, options, accept, on_step)
    try:
        location = locate(settings.model, settings.architecture, on_step)
    except CheckpointError as error:
        raise explained_checkpoint_error(error) from error
    try:
        loaded = _load_by_openvino(settings, location, options, accept, on_step)
    except NowhereToKeep:
        return _load_here(settings, options, accept, on_step)
    except ConversionFailed as error:
        if not may_fall_back(options):
            raise
        return _load_here(settings, options, accept, on_step, why_not_openvino=error)
    tell_faster_dtype(loaded.description.served_by, options)
    return loaded


def load(settings: Settings, on_step: OnStep) -> "Checkpoint":
    """Load the checkpoint that the settings name, by torch in this process.

    Raises:
        StartError: it cannot be served.
    """
    from model.checkpoints.checkpoint import load_checkpoint

    try:
        return load_checkpoint(
            settings.model, settings.architecture, settings.image_size, on_step, settings.activation, settings.library
        )
    except CheckpointError as error:
        raise explained_checkpoint_error(error) from error


def engine_options(settings: Settings, *, low_priority: bool = False) -> EngineOptions:
    """Return the settings that concern engines."""
    return EngineOptions(
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        compile=settings.compile,
        max_batch_size=settings.max_batch_size,
        threads=settings.inference_threads,
        cache=settings.cache_dir,
        features=settings.embed,
        low_priority=low_priority,
        lone_on_all_cores=settings.lone_on_all_cores is not False,
    )


def _load_by_openvino(
    settings: Settings, location: Location, options: EngineOptions, accept: Accept, on_step: OnStep
) -> LoadedModel:
    """Load what the cache keeps, or else a conversion by another process, which is kept then."""
    request = _request(settings, location, options)
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        digest = pool.submit(request.key)
        from app.engines.openvino import explained, log_conversion, warn_uncached  # half a second, as of the digest

        key = digest.result()
    on_step("preparing the engine")
    directory = options.cache / OPENVINO
    kept = None if key is None else KeptModel(directory / key)
    if kept is not None and (loaded := _load_kept(kept, options, accept)) is not None:
        return loaded
    where = directory if kept is None else kept.path
    log_conversion(where)
    conversion = converted(request, kept, key, on_step=on_step, accept=accept, on_uncached=partial(warn_uncached, where))
    with conversion as made:
        try:
            with explained():
                return _start(made.facts(), made, options)
        except StartError as error:
            raise ConversionFailed(str(error)) from error


def _load_kept(kept: KeptModel, options: EngineOptions, accept: Accept) -> LoadedModel | None:
    """Load what an earlier start has kept; None if there is nothing, or what costs a conversion."""
    from app.engines.openvino import warn_unusable

    try:
        if not kept.verify():
            return None
        facts = kept.facts()
        description = Description.of_json(facts["description"])
    except Exception as error:  # of files that are damaged in any way
        warn_unusable(kept, error)
        return None
    accept(description)
    try:
        return _start(facts, kept, options)
    except Exception as error:  # of OpenVINO, or of files
        warn_unusable(kept, error)
        return None


def _start(facts: Mapping[str, Any], kept: KeptModel, options: EngineOptions) -> LoadedModel:
    from app.engines.openvino import load_kept

    engine = load_kept(kept, openvino_options(options, facts["batch_size"]))
    return LoadedModel(Description.of_json(facts["description"]), engine, kept.weights)


def _request(settings: Settings, location: Location, options: EngineOptions) -> ConversionRequest:
    run_dtype = openvino_dtype(options)
    return ConversionRequest(
        location,
        settings.architecture,
        settings.image_size,
        settings.activation,
        settings.library,
        options.features,
        "int8" if run_dtype == "int8" else "float32",  # bfloat16 is an option of OpenVINO's compiler
        run_dtype,
        options.threads,
        low_priority=options.low_priority,
    )


def _load_here(
    settings: Settings,
    options: EngineOptions,
    accept: Accept,
    on_step: OnStep,
    *,
    why_not_openvino: ConversionFailed | None = None,
) -> LoadedModel:
    """Load the checkpoint by torch into this process, and make its engine."""
    alone = partial(_load_alone, settings, on_step)
    checkpoint = at_lowest_priority(alone) if options.low_priority else load(settings, on_step)
    description = checkpoint.describe()
    accept(description)
    if why_not_openvino is not None:
        return LoadedModel(description, fall_back(checkpoint, options, why_not_openvino))
    return LoadedModel(description, choose_engine(checkpoint, options, on_step))


def _load_alone(settings: Settings, on_step: OnStep) -> "Checkpoint":
    """Load a checkpoint with one thread, which wastes no core by waiting for others."""
    take_cores(1)
    return load(settings, on_step)

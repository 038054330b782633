"""Composition root: a model's settings -> `Classifier`: the checkpoint on its engine, with its queue."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from app.decoding.pool.job import MAX_OUTPUT_BYTES
from app.decoding.pool.select import image_decoder
from app.decoding.preprocessor import Preprocessors
from app.decoding.preprocessors import preprocessors_of
from app.engines import Engine
from app.engines.select import EngineOptions, choose_engine, take_one_core
from app.errors import StartError
from app.explaining.explainer import ExplainedModel, Explainer
from app.explaining.keeper import ProcessKeeper
from app.explaining.process import ExplainingProcess
from app.metrics import Metrics, ModelMetrics
from app.pixels import Pixels
from app.process.cpu import unhurried
from app.process.startup import OnStep, watched_start
from app.serving.batching import Batcher
from app.serving.classifier import Classifier
from app.serving.model_list import ModelSpec
from app.serving.results import Features, ModelDescription
from app.serving.runner import ModelRunner, Scores
from app.serving.shared import Shared
from app.settings import Settings
from app.tracing.images import ImageTrace, batch_trace
from model.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.head import probabilities
from model.library.library_model import LibraryConfig
from model.vit import VisionTransformer

Run = Callable[[ModelRunner, Sequence[Pixels]], Awaitable[Sequence[Scores]]]
Reserve = Callable[[int], None]


def load(settings: Settings, on_step: OnStep) -> Checkpoint:
    """Load the checkpoint that the settings name.

    Raises:
        StartError: it cannot be served.
    """
    try:
        return load_checkpoint(
            settings.model, settings.architecture, settings.image_size, on_step, settings.activation, settings.library
        )
    except CheckpointError as error:
        raise StartError(f"VIT_{(error.field or 'model').upper()}: {error}") from error


def _load_alone(settings: Settings, on_step: OnStep) -> Checkpoint:
    """Load a checkpoint with one thread, which wastes no core by waiting for others."""
    take_one_core()
    return load(settings, on_step)


def load_classifier(
    spec: ModelSpec, metrics: Metrics, shared: Shared, reserve: Reserve = lambda parameters: None, *, run: Run = ModelRunner.run
) -> Classifier:
    """Load a model onto its engine and warm it up. Blocks, for seconds to minutes.

    Args:
        spec: the model, and its settings.
        metrics: metrics of the service.
        shared: what it shares with other models.
        reserve: called with the number of parameters before memory is taken for them; may raise.
        run: runs a batch on the runner.

    Raises:
        StartError: the checkpoint cannot be served, or the device is missing.
    """
    with watched_start() as on_step:
        return _load_classifier(spec, metrics, shared, reserve, run, on_step)


def _load_classifier(
    spec: ModelSpec, metrics: Metrics, shared: Shared, reserve: Reserve, run: Run, on_step: OnStep
) -> Classifier:
    settings = spec.settings
    checkpoint = unhurried(partial(_load_alone, settings, on_step)) if shared.serving else load(settings, on_step)
    name = spec.name or checkpoint.name
    reserve(checkpoint.parameters)
    config = checkpoint.model.config
    image_shape = (config.num_channels, config.image_size, config.image_size)
    preprocessors = preprocessors_of(image_decoder(settings, checkpoint.preprocessing), image_shape)
    if preprocessors.input.output_bytes > MAX_OUTPUT_BYTES:
        raise StartError(f"VIT_MODEL: its input of {config.image_size} x {config.image_size} pixels is too large")
    engine = choose_engine(checkpoint, engine_options(settings, unhurried=shared.serving), on_step)
    slots = shared.slots(engine)
    to_probabilities = partial(probabilities, activation=checkpoint.activation)
    runner = ModelRunner(engine, image_shape, config.num_classes, to_probabilities, lambda: slots.in_flight)
    on_step("warming up")
    runner.warm_up()
    model_metrics = metrics.of_model(name)
    batcher = Batcher(
        partial(run, runner),
        max_batch_size=engine.max_batch_size,
        slots=slots,
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
        independent_streams=engine.independent_streams,
        inference_timeout_s=settings.inference_timeout_s,
        observe=partial(_observed, model_metrics, engine.batch_sizes),
    )
    explainer = _explainer(settings, checkpoint, name, shared, preprocessors, model_metrics)
    methods = () if explainer is None else explainer.model.methods
    return Classifier(
        _describe(checkpoint, name, engine, methods, with_features=settings.embed),
        shared.decoder,
        preprocessors.input,
        runner,
        admission=shared.admission,
        batcher=batcher,
        metrics=model_metrics,
        why_no_features=checkpoint.why_no_features if settings.embed else "VIT_EMBED is false",
        explainer=explainer,
    )


def _explainer(
    settings: Settings,
    checkpoint: Checkpoint,
    name: str,
    shared: Shared,
    preprocessors: Preprocessors,
    metrics: ModelMetrics,
) -> Explainer | None:
    if not settings.explain or not isinstance(checkpoint.model, VisionTransformer):
        return None
    config, preprocessing = checkpoint.model.config, checkpoint.preprocessing
    model = ExplainedModel(name, checkpoint.labels, config.grid_size, config.patch_size, preprocessing)
    arguments = (settings.model, settings.architecture, settings.image_size, checkpoint.activation)
    keeper = ProcessKeeper(
        lambda: ExplainingProcess.start(arguments),
        on_loss=metrics.explain.lost.inc,
        is_busy=lambda: shared.admission.images > 0,
        turn=shared.turn,
    )
    return Explainer(model, shared.decoder, preprocessors, keeper, admission=shared.explanations, metrics=metrics.explain)


@contextmanager
def _observed(metrics: ModelMetrics, padded_sizes: Sequence[int], images: Sequence[ImageTrace]) -> Iterator[None]:
    """Count and trace a batch of these images."""
    size = len(images)
    with batch_trace(images, next((padded for padded in padded_sizes if padded >= size), size)), metrics.outcome_of_batch(size):
        yield


def engine_options(settings: Settings, *, unhurried: bool = False) -> EngineOptions:
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
        unhurried=unhurried,
        lone_on_all_cores=settings.lone_on_all_cores is not False,
    )


def _describe(
    checkpoint: Checkpoint, name: str, engine: Engine, explanations: tuple[str, ...], *, with_features: bool
) -> ModelDescription:
    config = checkpoint.model.config
    features = checkpoint.features if with_features else {}
    return ModelDescription(
        name=name,
        architecture=checkpoint.architecture,
        labels=checkpoint.labels,
        labels_source=checkpoint.labels_source,
        activation=checkpoint.activation,
        image_size=config.image_size,
        patch_size=None if isinstance(config, LibraryConfig) else config.patch_size,
        parameters=checkpoint.parameters,
        served_by=checkpoint.served_by,
        output_size=config.output_dim,
        features=tuple(Features(name, size) for name, size in features.items()),
        explanations=explanations,
        engine=engine.name,
        device=engine.device,
        dtype=engine.dtype,
        preprocessing=checkpoint.preprocessing.describe(),
        max_batch_size=engine.max_batch_size,
        compiled_batch_sizes=engine.batch_sizes,
    )

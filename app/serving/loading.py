"""Composition root: settings -> `Classifier`: the checkpoint on its engine, the batcher and the decoder."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from app.decoding import Decoder
from app.decoding.pool.select import begin_decoding
from app.engines import Engine
from app.engines.select import EngineOptions, choose_engine
from app.errors import StartError
from app.explaining.explainer import ExplainedModel, Explainer
from app.explaining.keeper import ProcessKeeper
from app.explaining.process import ExplainingProcess
from app.metrics import ExplainMetrics, Metrics, ModelMetrics
from app.pixels import Pixels
from app.process.startup import OnStep, watched_start
from app.serving.admission import Admission
from app.serving.batching import Batcher, BatchSlots
from app.serving.classifier import Classifier
from app.serving.results import Features, ModelDescription
from app.serving.runner import ModelRunner, Scores
from app.settings import Settings
from app.tracing.images import ImageTrace, batch_trace
from model.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.head import probabilities
from model.library.library_model import LibraryConfig
from model.preprocessing import Preprocessing
from model.vit import VisionTransformer

Run = Callable[[ModelRunner, Sequence[Pixels]], Awaitable[Sequence[Scores]]]
Shape = tuple[int, int, int]


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


def load_classifier(
    settings: Settings, metrics: Metrics, *, run: Run = ModelRunner.run, decoder: Decoder | None = None
) -> Classifier:
    """Load the checkpoint onto its engine and warm it up. Blocks, for seconds to minutes.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        run: runs a batch on the runner.
        decoder: replaces the one that the settings ask for.

    Raises:
        StartError: the checkpoint cannot be served, or the device is missing.
    """
    with watched_start() as on_step:
        if decoder is not None:
            return _load_classifier(settings, metrics, run, lambda *_: decoder, on_step)
        on_step("starting the decoders")
        with begin_decoding(settings, metrics) as decoding:
            return _load_classifier(settings, metrics, run, decoding.finish, on_step)


def _load_classifier(
    settings: Settings,
    metrics: Metrics,
    run: Run,
    make_decoder: Callable[[Preprocessing, Shape], Decoder],
    on_step: OnStep,
) -> Classifier:
    checkpoint = load(settings, on_step)
    config = checkpoint.model.config
    image_shape = (config.num_channels, config.image_size, config.image_size)
    engine = choose_engine(checkpoint, _engine_options(settings), on_step)
    runner = ModelRunner(engine, image_shape, config.num_classes, partial(probabilities, activation=checkpoint.activation))
    on_step("warming up")
    runner.warm_up()
    on_step("starting the decoders")
    decoder = make_decoder(checkpoint.preprocessing, image_shape)
    model_metrics = metrics.of_model(checkpoint.name)
    admission = Admission(max_images=settings.max_inflight_images, max_bytes=settings.max_inflight_bytes)
    batcher = Batcher(
        partial(run, runner),
        max_batch_size=engine.max_batch_size,
        slots=BatchSlots(engine.max_concurrent_batches),
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
        independent_streams=engine.independent_streams,
        inference_timeout_s=settings.inference_timeout_s,
        observe=partial(_observed, model_metrics, engine.batch_sizes),
    )
    explainer = _explainer(settings, checkpoint, decoder, admission, metrics.explain)
    methods = () if explainer is None else explainer.model.methods
    description = _describe(checkpoint, engine, methods, with_features=settings.embed)
    _show(model_metrics, settings, admission, batcher, description)
    return Classifier(
        description,
        decoder,
        runner,
        admission=admission,
        batcher=batcher,
        metrics=model_metrics,
        why_no_features=checkpoint.why_no_features if settings.embed else "VIT_EMBED is false",
        explainer=explainer,
    )


def _explainer(
    settings: Settings, checkpoint: Checkpoint, decoder: Decoder, admission: Admission, metrics: ExplainMetrics
) -> Explainer | None:
    if not settings.explain or not isinstance(checkpoint.model, VisionTransformer):
        return None
    config, preprocessing = checkpoint.model.config, checkpoint.preprocessing
    model = ExplainedModel(checkpoint.name, checkpoint.labels, config.grid_size, config.patch_size, preprocessing)
    arguments = (settings.model, settings.architecture, settings.image_size, checkpoint.activation)
    keeper = ProcessKeeper(
        lambda: ExplainingProcess.start(arguments), on_loss=metrics.lost.inc, is_busy=lambda: admission.images > 0
    )
    return Explainer(model, decoder, keeper, max_images=settings.max_explained_images, metrics=metrics)


@contextmanager
def _observed(metrics: ModelMetrics, padded_sizes: Sequence[int], images: Sequence[ImageTrace]) -> Iterator[None]:
    """Count and trace a batch of these images."""
    size = len(images)
    with batch_trace(images, next((padded for padded in padded_sizes if padded >= size), size)), metrics.outcome_of_batch(size):
        yield


def _show(
    metrics: ModelMetrics,
    settings: Settings,
    admission: Admission,
    batcher: Batcher[Pixels, Scores],
    model: ModelDescription,
) -> None:
    """Set the gauges of a model: what it is, what it holds, and its limits."""
    metrics.inflight_images.set_function(lambda: admission.images)
    metrics.inflight_bytes.set_function(lambda: admission.bytes)
    metrics.queued_images.set_function(lambda: batcher.queued)
    metrics.max_batch_size.set_function(lambda: batcher.max_batch_size)
    metrics.max_inflight_images.set(settings.max_inflight_images)
    metrics.max_inflight_bytes.set(settings.max_inflight_bytes)
    metrics.padded_sizes = model.compiled_batch_sizes
    metrics.describe(
        architecture=model.architecture,
        served_by=model.served_by,
        engine=model.engine,
        device=model.device,
        dtype=model.dtype,
    )


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        compile=settings.compile,
        max_batch_size=settings.max_batch_size,
        threads=settings.inference_threads,
        cache=settings.cache_dir,
        features=settings.embed,
    )


def _describe(
    checkpoint: Checkpoint, engine: Engine, explanations: tuple[str, ...], *, with_features: bool
) -> ModelDescription:
    config = checkpoint.model.config
    features = checkpoint.features if with_features else {}
    return ModelDescription(
        name=checkpoint.name,
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

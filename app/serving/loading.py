"""Composition root: a model's settings -> `Classifier`: the checkpoint on its engine, with its queue."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod

from app.decoding.pool.job import MAX_OUTPUT_BYTES
from app.decoding.pool.select import image_decoder
from app.decoding.preprocessor import Preprocessors
from app.decoding.preprocessors import preprocessors_of
from app.engines import Engine
from app.engines.memory import leave_pages
from app.errors import StartError
from app.explaining.explainer import ExplainedModel, Explainer
from app.explaining.keeper import ProcessKeeper
from app.explaining.process import ExplainingProcess
from app.metrics import Metrics, ModelMetrics
from app.pixels import Pixels
from app.process.startup import OnStep, watched_start
from app.serving.batching import Batcher
from app.serving.classifier import Classifier
from app.serving.engine_loading import load_engine
from app.serving.model_list import ModelSpec
from app.serving.results import Features, ModelDescription
from app.serving.runner import ModelRunner, Scores
from app.serving.shared import Shared
from app.settings import Settings
from app.tracing.images import ImageTrace, batch_trace
from model.checkpoints.description import Description
from model.head import probabilities

Run = Callable[[ModelRunner, Sequence[Pixels]], Awaitable[Sequence[Scores]]]
Reserve = Callable[[int], None]


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

    def accept(description: Description) -> None:
        reserve(description.parameters)
        if prod(description.image_shape) > MAX_OUTPUT_BYTES:
            size = description.image_size
            raise StartError(f"VIT_MODEL: its input of {size} x {size} pixels is too large")

    loaded = load_engine(settings, accept, on_step, low_priority=shared.serving)
    description, engine = loaded.description, loaded.engine
    name = spec.name or description.name
    preprocessors = preprocessors_of(image_decoder(settings, description.preprocessing), description.image_shape)
    slots = shared.slots(engine)
    to_probabilities = partial(probabilities, activation=description.activation)
    runner = ModelRunner(engine, description.image_shape, description.num_classes, to_probabilities, lambda: slots.in_flight)
    on_step("warming up")
    runner.warm_up()
    if loaded.mapped is not None:
        leave_pages(loaded.mapped)
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
    explainer = _explainer(settings, description, name, shared, preprocessors, model_metrics)
    methods = () if explainer is None else explainer.model.methods
    return Classifier(
        _describe(description, name, engine, methods, with_features=settings.embed),
        shared.decoder,
        preprocessors.input,
        runner,
        admission=shared.admission,
        batcher=batcher,
        metrics=model_metrics,
        why_no_features=description.why_no_features if settings.embed else "VIT_EMBED is false",
        explainer=explainer,
    )


def _explainer(
    settings: Settings,
    description: Description,
    name: str,
    shared: Shared,
    preprocessors: Preprocessors,
    metrics: ModelMetrics,
) -> Explainer | None:
    if not settings.explain or description.patch_size is None:
        return None
    size, grid = description.patch_size, description.image_size // description.patch_size
    model = ExplainedModel(name, description.labels, grid, size, description.preprocessing)
    arguments = (settings.model, settings.architecture, settings.image_size, description.activation)
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


def _describe(
    description: Description, name: str, engine: Engine, explanations: tuple[str, ...], *, with_features: bool
) -> ModelDescription:
    features = description.features if with_features else {}
    return ModelDescription(
        name=name,
        architecture=description.architecture,
        labels=description.labels,
        labels_source=description.labels_source,
        activation=description.activation,
        image_size=description.image_size,
        patch_size=description.patch_size,
        parameters=description.parameters,
        served_by=description.served_by,
        output_size=description.output_dim,
        features=tuple(Features(name, size) for name, size in features.items()),
        explanations=explanations,
        engine=engine.name,
        device=engine.device,
        dtype=engine.dtype,
        preprocessing=description.preprocessing.describe(),
        max_batch_size=engine.max_batch_size,
        compiled_batch_sizes=engine.batch_sizes,
    )

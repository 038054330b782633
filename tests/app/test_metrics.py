"""Metrics: series that alerts and the dashboard need exist before their first count, and say what was observed."""

import re
from typing import Any

import httpx
import numpy as np
import pytest

from app.errors import ServiceError
from app.metrics import Metrics, ModelMetrics
from app.serving.classifier import Classifier
from tests.support.models import TINY_DINOV2, png


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def with_model(*padded_sizes: int) -> tuple[Metrics, ModelMetrics]:
    metrics = Metrics()
    model = metrics.of_model("m")
    model.padded_sizes = padded_sizes
    return metrics, model


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("vit_http_problems_total", "code", ["queue_full", "draining", "internal_error", "deadline_exceeded"]),
        ("vit_rate_limited_requests_total", "limit", ["key", "address"]),
        ("vit_http_refused_total", "reason", ["too_many_connections", "dropped", "silent"]),
        ("vit_decoder_restarts_total", "reason", ["timeout", "crashed", "killed", "start"]),
        ("vit_images_total", "outcome", ["ok", "cancelled", "deadline_exceeded", "undecodable_image"]),
        ("vit_batches_total", "outcome", ["ok", "cut_off", "out_of_memory", "engine_dead", "failed"]),
    ],
)
def test_counters_begin_at_zero(name: str, label: str, values: list[str]) -> None:
    metrics, _ = with_model()
    of_model = {"model": "m"} if name in ("vit_images_total", "vit_batches_total") else {}
    assert [value(metrics, name, **of_model, **{label: each}) for each in values] == [0] * len(values)


def test_codes_that_begin_at_zero_exist() -> None:
    def kinds(kind: type[ServiceError]) -> list[type[ServiceError]]:
        return [kind, *(below for each in kind.__subclasses__() for below in kinds(each))]

    metrics, _ = with_model()
    codes = {kind.code for kind in kinds(ServiceError) if hasattr(kind, "code")}
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    counted = {sample.labels["code"] for sample in samples if "code" in sample.labels}
    outcomes = {sample.labels["outcome"] for sample in samples if sample.name == "vit_images_total"}
    assert counted <= codes
    assert outcomes <= codes | {"ok", "cancelled"}


@pytest.mark.parametrize(
    ("padded_sizes", "batches", "rows"), [((), [1, 3, 7], 0), ((1, 2, 4, 8), [1, 3, 7], 2), ((1, 2, 4, 6), [5, 6], 1)]
)
def test_padding_is_counted(padded_sizes: tuple[int, ...], batches: list[int], rows: int) -> None:
    metrics, model = with_model(*padded_sizes)
    for size in batches:
        with model.outcome_of_batch(size):
            pass
    assert value(metrics, "vit_batch_padding_images_total", model="m") == rows
    assert value(metrics, "vit_batch_size_images_sum", model="m") == sum(batches)


def test_failed_batches_count_no_padding() -> None:
    metrics, model = with_model(8)
    with pytest.raises(ValueError, match="no"), model.outcome_of_batch(1):
        raise ValueError("no")
    assert value(metrics, "vit_batch_padding_images_total", model="m") == 0


def test_pixels_count_as_no_decoding() -> None:
    metrics, model = with_model()
    model.observe_timings(0.0, 0.0, 0.5, 0.25)
    model.observe_timings(2.0, 1.0, 0.5, 0.25)
    counts = {stage: value(metrics, f"vit_{stage}_seconds_count", model="m") for stage in ("decode_wait", "decode", "queue")}
    assert counts == {"decode_wait": 1, "decode": 1, "queue": 2}
    assert value(metrics, "vit_decode_wait_seconds_sum", model="m") == 2
    assert value(metrics, "vit_decode_seconds_sum", model="m") == 1
    sums = model.statistics
    assert (sums.decode_s, sums.queue_s, sums.inference_s) == (1, 3, 0.5)


async def test_model_and_limits_are_shown(open_client: Any) -> None:
    async with open_client(max_inflight_images=7, max_inflight_bytes=2**28) as client:
        lines = (await client.get("/metrics")).text.splitlines()
        model = (await client.get("/model")).json()
    labels = ",".join(f'{name}="{model[name]}"' for name in ("architecture", "device", "dtype", "engine"))
    shown = f'vit_model_info{{{labels},model="{model["name"]}",served_by="vit-serve"}} 1.0'
    assert shown in lines
    for name, limit in {"max_inflight_images": 7, "max_inflight_bytes": 2**28, "max_batch_size_images": 4}.items():
        (line,) = (line for line in lines if re.match(rf"vit_{name}[ {{]", line))
        assert float(line.split()[1]) == limit


async def test_stages_of_an_image_are_observed(client: httpx.AsyncClient) -> None:
    await client.post("/predict", content=png(0))
    classifier: Classifier = client.app.state.vit_serve.service.ready_classifier()  # type: ignore[attr-defined]
    await classifier.classify_pixels(np.zeros((3, TINY_DINOV2.image_size, TINY_DINOV2.image_size), np.uint8))
    text = (await client.get("/metrics")).text
    for stage, images in (("decode_wait", 1), ("decode", 1), ("queue", 2), ("inference", 2)):
        assert f'vit_{stage}_seconds_count{{model="tiny-dinov2"}} {images}.0' in text


async def test_refused_images_keep_decoders_busy(client: httpx.AsyncClient) -> None:
    assert (await client.post("/predict", content=png(0)[:60])).status_code == 422
    metrics: Metrics = client.app.state.vit_serve.metrics  # type: ignore[attr-defined]
    assert (value(metrics, "vit_decoder_busy_seconds_total") or 0) > 0
    assert value(metrics, "vit_decode_seconds_count", model="tiny-dinov2") == 0

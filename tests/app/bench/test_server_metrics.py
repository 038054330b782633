"""Sizes of batches as the service's metrics have them."""

import pytest

from app.bench.server_metrics import Batches, MetricsMissing, parse_batches
from app.metrics import Metrics


def test_batches_of_all_models_are_summed() -> None:
    metrics = Metrics()
    for model, sizes in {'a"}\\ 7': (1, 8), "b": (3,)}.items():
        for size in sizes:
            with metrics.of_model(model).outcome_of_batch(size):
                pass
    assert parse_batches(metrics.text()) == Batches(count=3, images=12)


@pytest.mark.parametrize("text", [b"", b"vit_ready 1.0\n", b"vit_batch_size_images_count NaN\n", b"\xff\x00", b"<html>"])
def test_other_texts_have_no_batches(text: bytes) -> None:
    with pytest.raises(MetricsMissing, match="no vit_batch_size_images"):
        parse_batches(text)


def test_mean_is_of_the_interval() -> None:
    assert Batches(7, 40).mean_since(Batches(5, 10)) == 15
    assert Batches(5, 10).mean_since(Batches(5, 10)) is None
    with pytest.raises(MetricsMissing, match="restarted"):
        Batches(1, 1).mean_since(Batches(5, 10))

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
    found = parse_batches(metrics.text())
    assert (found.count, found.images) == (3, 12)
    assert found.started is not None and found.started > 1e9


@pytest.mark.parametrize("text", [b"", b"vit_ready 1.0\n", b"vit_batch_size_images_count NaN\n", b"\xff\x00", b"<html>"])
def test_other_texts_have_no_batches(text: bytes) -> None:
    with pytest.raises(MetricsMissing, match="no vit_batch_size_images"):
        parse_batches(text)


def test_mean_is_of_the_interval() -> None:
    assert Batches(7, 40).mean_since(Batches(5, 10)) == 15
    assert Batches(5, 10).mean_since(Batches(5, 10)) is None
    assert Batches(7, 40, 1.5).mean_since(Batches(5, 10, 1.5)) == 15
    with pytest.raises(MetricsMissing, match="several processes"):
        Batches(7, 40, 2.5).mean_since(Batches(5, 10, 1.5))
    with pytest.raises(MetricsMissing, match="restarted"):
        Batches(1, 1).mean_since(Batches(5, 10))


@pytest.mark.parametrize("number", ["1.2345678901234567e+09", "12", "0.30000000000000004"])
def test_numbers_have_all_their_digits(number: str) -> None:
    text = f'vit_batch_size_images_count{{m="1"}} 4\nvit_batch_size_images_sum {number}\nprocess_start_time_seconds {number}\n'
    assert parse_batches(text.encode()) == Batches(4, float(number), float(number))

"""Numbers that the comparison of the simulation with real replicas takes from metrics, and its proxy."""

from pathlib import Path

import pytest

from app.bench.load import Load
from benchmarks.simulation.measured import Alone, Stages, others_on, replica_of
from benchmarks.simulation.proxied import configuration
from benchmarks.watch import metrics_of
from tests.support.proxy import check_config, needs_haproxy

BATCH_S, IMAGE_S, DECODE_S, LOOP_S = 0.004, 0.007, 0.002, 0.001


def metrics(images: int, batches: int, inference_s: float) -> dict[str, float]:
    """Return the metrics of a replica after so many images."""
    lines = [
        f'vit_batch_size_images_sum{{model="m"}} {images}',
        f'vit_batch_size_images_count{{model="m"}} {batches}',
    ]
    for stage, each_s in (("decode_wait", 0.0), ("decode", DECODE_S), ("queue", 0.0), ("inference", inference_s)):
        lines += [
            f'vit_{stage}_seconds_sum{{model="m"}} {each_s * images}',
            f'vit_{stage}_seconds_count{{model="m"}} {images}',
        ]
    return metrics_of("\n".join(lines).encode())


def stages(size: int) -> Stages:
    """Return what batches of one size, behind others, leave in the metrics."""
    before, since = metrics(50, 50, 1.0), metrics(100 * size, 100, BATCH_S + size * IMAGE_S)
    return Stages.between(before, {name: value + since[name] for name, value in before.items()})


def test_times_come_from_the_metrics() -> None:
    p50 = BATCH_S + IMAGE_S + DECODE_S + LOOP_S
    alone = [Alone(Load("", 1.0, p50, p50, p50, 0, 0.0), stages(size), cpu_s=p50) for size in (1, 4, 7)]
    assert others_on(2, alone[0]) == 0
    replica = replica_of(alone, max_batch_size=7, variation=0.2)
    assert (replica.engine.batch_s, replica.engine.image_s) == pytest.approx((BATCH_S, IMAGE_S))
    assert (replica.decode.mean_s, replica.loop_s) == pytest.approx((DECODE_S, LOOP_S))
    assert (replica.decoders, replica.engine.max_batch_size) == (1, 7)


def test_slower_than_its_cpu_time_means_others() -> None:
    p50 = BATCH_S + IMAGE_S + DECODE_S + LOOP_S
    alone = [Alone(Load("", 1.0, p50, p50, p50, 0, 0.0), stages(size), cpu_s=p50 / 2) for size in (1, 4, 7)]
    assert others_on(2, alone[0]) == pytest.approx(3)  # of four tasks on two cores, each has half of one
    replica = replica_of(alone, max_batch_size=7, variation=0.2)
    assert (replica.engine.image_s, replica.decode.mean_s) == pytest.approx((IMAGE_S / 2, DECODE_S / 2))


@needs_haproxy
def test_haproxy_accepts_the_replicas(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text(configuration(["127.0.0.3:8000", "127.0.0.4:8000"]), encoding="utf-8")
    checked = check_config(tmp_path / "haproxy.cfg")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "server-template" not in (tmp_path / "haproxy.cfg").read_text(encoding="utf-8")

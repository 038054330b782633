"""Alerts and dashboard name metrics that a real service exports, with labels that these have."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.models import png
from tests.support.monitoring import DASHBOARD, RULES, dashboard_queries, grouped, named, selectors
from tests.support.server import running_server

_QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES] + dashboard_queries()

_UP = {"up": set[str]()}
"""Made by Prometheus."""


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path) -> Iterator[dict[str, set[str]]]:
    """Labels of each exported metric, after one request: a series exists after its first count."""
    with running_server(model=tiny_checkpoint, engine="torch", decode_isolation="thread") as server:
        httpx.post(f"{server.url}/predict", content=png(0)).raise_for_status()
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    samples = (next(named(line)) for line in lines if line.startswith(("vit_", "process_")))
    yield _UP | dict(samples)


@pytest.mark.parametrize(("name", "query"), _QUERIES, ids=[name for name, _ in _QUERIES])
def test_metrics_of_queries_are_exported(exported: dict[str, set[str]], name: str, query: str) -> None:
    asked = list(named(query))
    assert asked
    for metric, labels in asked:
        assert metric in exported
        assert labels <= exported[metric]
    assert grouped(query) <= set[str]().union(*(exported[metric] for metric, _ in asked))


def test_unknown_metrics_and_labels_are_noticed(exported: dict[str, set[str]]) -> None:
    (asked,) = named('rate(vit_images_total{instance=~"a", outcome!="ok", colour=~"red"}[5m])')
    assert asked == ("vit_images_total", {"outcome", "colour"})
    assert not asked[1] <= exported["vit_images_total"]
    assert selectors('sum by (code) (vit_a{b="c"} / vit_d)') == ['vit_a{b="c"}', "vit_d"]
    assert grouped("sum by (instance, code) (x) > on (job, model) y") == {"code", "model"}


def test_dashboard_variables_are_exported(exported: dict[str, set[str]]) -> None:
    asked = [each.get("definition", "") for each in DASHBOARD["templating"]["list"]]
    metrics = {metric for text in asked for metric in re.findall(r"label_values\((\w+), instance\)", text)}
    assert metrics
    assert metrics <= exported.keys()

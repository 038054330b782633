"""A real Prometheus with the alerts of deploy/ watches a real server under mixed load: every query has an answer."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.models import encode, random_image
from tests.support.monitoring import DASHBOARD, RULES, dashboard_queries, selectors
from tests.support.prometheus import Prometheus, needs_prometheus, running_prometheus
from tests.support.server import Server, decoders, metric, running_server

pytestmark = needs_prometheus

_QUERIES = dashboard_queries()
_SMALL, _LARGE = encode(random_image(0)), encode(random_image(0, 1600, 1600))
_KILLS = 8
"""Workers to kill: more than the alert on them needs."""

_COUNTS = {
    "answered": 'vit_images_total{outcome="ok"}',
    "refused": 'vit_http_problems_total{code="queue_full"}',
    "cancelled": 'vit_images_total{outcome="cancelled"}',
    "expired": 'vit_http_problems_total{code="deadline_exceeded"}',
    "undecodable": 'vit_images_total{outcome="undecodable_image"}',
    "explained": 'vit_explanations_total{outcome="ok"}',
    "killed": 'vit_decoder_restarts_total{reason="killed"}',
}


def until_counted(server: Server, names: tuple[str, ...], act: Callable[[], None]) -> None:
    """Repeat an action until each of these counters has grown."""
    before = {name: metric(server, _COUNTS[name]) for name in names}
    for _ in range(1000):
        act()
        if all(metric(server, _COUNTS[name]) > value for name, value in before.items()):
            return
    raise AssertionError(f"the load gave none of {names}")


def make_load(server: Server, kills: int) -> None:
    """Send good, broken, late and too many requests, leave some, and kill decoding workers."""

    def post(content: bytes, path: str = "/predict", timeout_s: float = 60, within_ms: int = 30_000) -> None:
        headers = {"X-Request-Timeout-Ms": str(within_ms)}
        with suppress(httpx.TimeoutException):
            httpx.post(server.url + path, content=content, headers=headers, timeout=timeout_s)

    post(_SMALL, path="/predictions/tiny-dinov2")
    post(_SMALL[:200])
    post(_LARGE, within_ms=1)
    with ThreadPoolExecutor(16) as threads:

        def post_too_many() -> None:
            wait([threads.submit(post, _LARGE, timeout_s=timeout_s) for timeout_s in (60, 0.05) * 8])

        until_counted(server, ("refused", "cancelled"), post_too_many)

    def kill_one() -> None:
        with suppress(IndexError, ProcessLookupError):  # the last one is being replaced
            os.kill(decoders(server)[0], signal.SIGKILL)
        post(_SMALL)

    for _ in range(kills):
        until_counted(server, ("killed",), kill_one)


def uncompared(expression: str) -> str:
    """Return the expression of an alert without its comparisons, so that it has values while all is well."""
    without = re.sub(r" (==|>=?) [\d.]+(?=\s|$)", "", expression)
    without = without.replace(" > on ", " - on ").replace("absent(", "sum(")
    return without.replace(":5m]", ":1s]")  # steps of a subquery as short as this test


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Prometheus]:
    options = {"model": tiny_checkpoint, "engine": "torch", "decode_workers": 2, "max_inflight_images": 6}
    with (
        running_server(**options) as server,
        running_prometheus(tmp_path_factory.mktemp("prometheus"), server) as prometheus,
    ):
        make_load(server, kills=1)  # the first count of a series is no increase
        prometheus.wait_for(f"{_COUNTS['killed']} > 0")
        make_load(server, kills=_KILLS)
        # last, because the process that explains begins with it, and `decoders` knows only one child
        httpx.post(f"{server.url}/explain", content=_SMALL, timeout=60).raise_for_status()
        for name in _COUNTS.values():
            prometheus.wait_for(f"sum({name}) >= {metric(server, name)}")
        yield prometheus


@pytest.mark.parametrize("name", _COUNTS)
def test_load_is_what_it_says(prometheus: Prometheus, name: str) -> None:
    assert sum(prometheus.query(f"increase({_COUNTS[name]}[5m])")) > 0


@pytest.mark.parametrize(("name", "query"), _QUERIES, ids=[name for name, _ in _QUERIES])
def test_dashboard_query_has_data(prometheus: Prometheus, name: str, query: str) -> None:
    filled = query.replace("$__rate_interval", "5m").replace("$instance", "127.0.0.1:.*|other")
    assert "$" not in filled
    assert prometheus.query(filled)


def test_stages_have_times_above_zero(prometheus: Prometheus) -> None:
    (means,) = (panel["targets"] for panel in DASHBOARD["panels"] if panel["title"] == "Mean time of an image")
    for target in means:
        (mean,) = prometheus.query(target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*"))
        assert mean > 0


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_series_of_alert_exist(prometheus: Prometheus, rule: dict[str, str]) -> None:
    for selector in selectors(rule["expr"]):
        assert prometheus.query(selector), selector
    assert prometheus.query(uncompared(rule["expr"])), uncompared(rule["expr"])


def test_alerts_are_loaded_and_healthy(prometheus: Prometheus) -> None:
    loaded = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in prometheus.rules()}
    assert loaded == {rule["alert"]: ("ok", None) for rule in RULES}


def test_killed_decoders_fire_their_alert(prometheus: Prometheus) -> None:
    (annotation,) = DASHBOARD["annotations"]["list"]
    prometheus.wait_for('ALERTS{alertname="VitServeDecodersDie", alertstate="firing", reason="killed"}')
    assert prometheus.query(annotation["expr"])


def test_alerts_of_health_are_quiet(prometheus: Prometheus) -> None:
    for alert in ("VitServeGone", "VitServeAllGone", "VitServeNotReady", "VitServeFaults", "VitServeRunsOutOfFiles"):
        assert not prometheus.query(f'ALERTS{{alertname="{alert}"}}'), alert

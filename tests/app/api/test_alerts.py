"""Alerts use exported metrics, and Prometheus loads both."""

import re
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from tests.support.models import ROOT, png

_PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
_RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]

_METRIC = re.compile(r"\b((?:vit|process)_\w+)(?:{([^}]*)})?")
"""Metric with its matchers, in PromQL or Prometheus' text format."""

_OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels added by Prometheus, or common to every histogram."""


def labels_of(matchers: str) -> set[str]:
    return set(re.findall(r"(\w+)=~?\"", matchers)) - _OF_PROMETHEUS


@pytest.mark.parametrize("rule", _RULES, ids=[rule["alert"] for rule in _RULES])
async def test_metrics_of_alerts_are_exported(client: httpx.AsyncClient, rule: dict[str, Any]) -> None:
    await client.post("/predict", content=png(0))  # a series exists after its first count
    lines = (await client.get("/metrics")).text.splitlines()
    samples = [match for line in lines if line[:1] != "#" and (match := _METRIC.match(line))]
    exported = {match[1]: labels_of(match[2] or "") for match in samples}
    asked = [(match[1], labels_of(match[2] or "")) for match in _METRIC.finditer(rule["expr"])]
    assert asked or rule["expr"].startswith("up{")
    for name, labels in asked:
        assert name in exported
        assert labels <= exported[name]


def test_prometheus_loads_the_alerts() -> None:
    assert _PROMETHEUS["rule_files"] == ["alerts.yml"]
    jobs = {job for rule in _RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert jobs == {scrape["job_name"] for scrape in _PROMETHEUS["scrape_configs"]}

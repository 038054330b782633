"""Alerts and dashboard as tests read them, and the metrics and labels that their queries name."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from tests.support.models import ROOT

DEPLOY = ROOT / "deploy"
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "vit-serve.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

_SELECTOR = re.compile(r"\b((?:vit|process)_\w+|up)\b(?:{([^}]*)})?")
"""Metric with its matchers, in PromQL or Prometheus' text format."""

_OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels added by Prometheus, or common to every histogram."""


def dashboard_queries() -> list[tuple[str, str]]:
    """Return the query of every line of every panel, with a name."""
    return [(f"{panel['title']} {target['refId']}", target["expr"]) for panel in PANELS for target in panel["targets"]]


def selectors(query: str) -> list[str]:
    """Return the metrics that a query names, each with its matchers."""
    return [match[0] for match in _SELECTOR.finditer(query)]


def named(text: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the metrics that a query or a line of metrics names, each with the labels of its matchers."""
    for match in _SELECTOR.finditer(text):
        yield match[1], set(re.findall(r"(\w+)(?:=|=~|!=|!~)\"", match[2] or "")) - _OF_PROMETHEUS


def grouped(query: str) -> set[str]:
    """Return the labels that a query groups or joins by."""
    clauses = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
    return {label.strip() for clause in clauses for label in clause.split(",")} - _OF_PROMETHEUS

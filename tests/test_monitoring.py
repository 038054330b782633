"""Compose file, provisioning, dashboard and alerts of Prometheus and Grafana, checked without either."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from app.metrics import Metrics
from tests.support.models import ROOT
from tests.support.monitoring import DASHBOARD, DEPLOY, PANELS, RULES
from tests.support.prometheus import needs_prometheus

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.monitoring.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")


def promtool(*arguments: str | Path) -> None:
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=DEPLOY, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def mounts(service: str) -> dict[str, str]:
    """Return the paths in a container by their files or volumes."""
    parts = (mount.split(":") for mount in SERVICES[service]["volumes"])
    return {part[1]: part[0] for part in parts}


@pytest.mark.parametrize("name", SERVICES)
def test_monitoring_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_monitoring_is_confined(name: str) -> None:
    service, plain = SERVICES[name], yaml.safe_load((DEPLOY / "compose.service.yml").read_text())["services"]["vit-serve"]
    for key in ("read_only", "cap_drop", "security_opt", "restart"):
        assert service[key] == plain[key]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_monitoring_mounts_exist(name: str) -> None:
    for source in mounts(name).values():
        assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
    files = [mount for mount in SERVICES[name]["volumes"] if mount.startswith("./")]
    assert files
    assert all(mount.endswith(":ro") for mount in files)


def test_grafana_lets_nobody_sign_in() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "${GRAFANA_ROLE:-Viewer}"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_provisioned_files_fit_together() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yml").read_text())["providers"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus.compose.yml").read_text())
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert mounts("grafana")[home] == "./deploy/grafana/vit-serve.json"


def test_both_configurations_are_alike() -> None:
    alone, composed = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("prometheus.yml", "prometheus.compose.yml"))
    (job_alone,), (job,) = alone.pop("scrape_configs"), composed.pop("scrape_configs")
    assert alone == composed
    assert job_alone["job_name"] == job["job_name"]
    (discovery,) = job["dns_sd_configs"]
    ports = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["vit-serve"]["ports"]
    assert discovery["names"] == ["vit-serve"]
    assert ports[0].endswith(f":{discovery['port']}")


def test_alerts_select_the_scraped_job() -> None:
    for name in ("prometheus.yml", "prometheus.compose.yml"):
        config = yaml.safe_load((DEPLOY / name).read_text())
        assert config["rule_files"] == ["alerts.yml"]
        jobs = {job for rule in RULES for job in re.findall(r'job="([^"]+)"', rule["expr"])}
        assert jobs == {scrape["job_name"] for scrape in config["scrape_configs"]}


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed (Debian: docker-compose)")
def test_compose_merges_the_files() -> None:
    files = ("-f", "docker-compose.yml", "-f", "deploy/compose.monitoring.yml")
    merged = subprocess.run(
        ["docker-compose", *files, "config"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert merged.returncode == 0, merged.stderr
    assert yaml.safe_load(merged.stdout)["services"].keys() == {"vit-serve", *SERVICES}


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]
        assert target["legendFormat"] or panel["type"] == "table"


def test_panels_do_not_overlap() -> None:
    cells = [
        (position["x"] + x, position["y"] + y)
        for position in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(position["w"])
        for y in range(position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_dashboard_takes_several_services() -> None:
    (instance,) = (each for each in DASHBOARD["templating"]["list"] if each["name"] == "instance")
    assert (instance["multi"], instance["includeAll"]) == (True, True)


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    notes = rule["annotations"]
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    page, _, anchor = notes["runbook"].partition("#")
    assert (page, anchor) == ("docs/observability.md", rule["alert"].lower())
    assert f"\n### {rule['alert']}\n" in PAGE


def test_page_has_no_other_alerts() -> None:
    assert re.findall(r"^### (VitServe\w+)$", PAGE, flags=re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_page_lists_every_metric() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `vit_")]
    listed = {name: set(re.findall(r"\w+", labels)) for names, labels in rows for name in re.findall(r"`(\w+)`", names)}
    metrics = Metrics()
    metrics.of_model("m").describe(architecture="", served_by="", engine="", device="", dtype="")
    families = [family for family in metrics.registry.collect() if family.name.startswith("vit_")]
    named = {f"{family.name}_total" if family.type == "counter" else family.name: family.samples for family in families}
    elsewhere = {"vit_http_connections", "vit_log_lines_dropped_total"}  # of the server, not of the application
    assert listed.keys() == named.keys() | elsewhere
    for name, samples in named.items():
        assert all(sample.labels.keys() - {"le"} == listed[name] for sample in samples), name


def bounds() -> set[str]:
    """Return the bounds of the buckets of a histogram in seconds."""
    metrics = Metrics()
    metrics.request_seconds.labels("GET", "/").observe(0)
    families = [family for family in metrics.registry.collect() if family.name == "vit_http_request_seconds"]
    return {sample.labels["le"] for family in families for sample in family.samples if "le" in sample.labels}


def test_percentiles_meet_bounds_of_buckets() -> None:
    limits = {match for rule in RULES for match in re.findall(r"histogram_quantile[^>]*> ([\d.]+)", rule["expr"])}
    for panel in PANELS:
        if "histogram_quantile" in panel["targets"][0]["expr"]:
            steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})["steps"]
            limits |= {str(step["value"]) for step in steps if step["value"]}
    assert limits == {"1", "2"}
    assert {f"{limit}.0" for limit in limits} <= bounds()


def test_buckets_of_alert_tests_are_exported() -> None:
    asked = re.findall(r'le="([\d.]+)"', (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8"))
    assert asked
    assert {str(float(bound)) for bound in asked} <= bounds()


def test_log_lines_of_the_page_exist() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "app").rglob("*.py"))
    table = PAGE[PAGE.index("| event | level") :]
    events = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    events += re.findall(r"`([a-z]+ [a-z ]+)`", PAGE[PAGE.index("### VitServeFaults") : PAGE.index("### VitServeBatchesFail")])
    assert len(events) > 10
    for event in events:
        assert f'"{event}' in code, event


def test_each_alert_fires_and_is_quiet() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    for rule in RULES:
        asked = [
            bool(case["exp_samples"])
            for test in tests
            for case in test["promql_expr_test"]
            if f'"{rule["alert"]}"' in case["expr"]
        ]
        assert set(asked) == {True, False}, rule["alert"]


@needs_prometheus
def test_promtool_accepts_the_files() -> None:
    promtool("check", "config", "prometheus.yml", "prometheus.compose.yml")
    promtool("check", "rules", "alerts.yml")


@needs_prometheus
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts_test.yml")


@needs_prometheus
@pytest.mark.parametrize(("old", "new"), [("> 0.05", "> 0.5"), ("for: 3m", "for: 0m"), ("queue_full", "rate_limited")])
def test_changed_alerts_are_noticed(tmp_path: Path, old: str, new: str) -> None:
    changed = (DEPLOY / "alerts.yml").read_text(encoding="utf-8").replace(old, new)
    (tmp_path / "alerts.yml").write_text(changed, encoding="utf-8")
    shutil.copy(DEPLOY / "alerts_test.yml", tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", tmp_path / "alerts_test.yml")

"""Compose files of several replicas behind a proxy, checked without Docker and without HAProxy."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from app.settings import Settings
from app.tracing.spans import FLUSH_S
from tests.support.models import ROOT
from tests.support.monitoring import DEPLOY
from tests.support.proxy import CONFIG

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.scale.yml").read_text(encoding="utf-8"))["services"]
BASE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.service.yml").read_text(encoding="utf-8"))["services"]["vit-serve"]
PLAIN: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["vit-serve"]
REPLICA, PROXY = SERVICES["vit-serve"], SERVICES["haproxy"]
FILES = ("compose.scale.yml", "compose.tls.yml", "compose.monitoring.yml", "compose.gpu.yml")


def seconds(name: str, text: str) -> float:
    """Return a time of the proxy's configuration."""
    ((number, unit),) = re.findall(rf"[ ]{name} (\d+)(ms|s)\b", text)
    return int(number) / (1000 if unit == "ms" else 1)


def test_only_the_proxy_has_an_address() -> None:
    assert "ports" not in {**BASE, **REPLICA}
    assert PROXY["ports"] == PLAIN["ports"] == ["${VIT_HOST:-127.0.0.1}:${VIT_PORT:-8000}:8000"]


def test_replicas_are_the_plain_service() -> None:
    assert REPLICA["extends"] == PLAIN["extends"]
    assert REPLICA.keys() == {"extends", "environment", "stop_grace_period"}
    assert REPLICA["environment"].keys() <= BASE["environment"].keys()


def test_proxy_is_confined() -> None:
    for key in ("read_only", "cap_drop", "security_opt", "restart"):
        assert PROXY[key] == BASE[key]
    assert re.fullmatch(r"\$\{HAPROXY_IMAGE:-haproxy:\d+\.\d+\.\d+\}", PROXY["image"])
    assert PROXY["mem_limit"]
    assert PROXY["logging"]["options"]["max-size"]
    assert PROXY["volumes"] == [f"./deploy/haproxy.cfg:{PROXY['command'][-1]}:ro"]


def test_base_of_compose_is_the_dockerfiles() -> None:
    (default,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert f"BASE=${{BASE:-{default}}}" in BASE["build"]["args"]


def test_replica_has_time_to_stop() -> None:
    grace_s = float(REPLICA["stop_grace_period"].removesuffix("s"))
    drain_s = REPLICA["environment"]["VIT_DRAIN_DELAY_S"] + Settings.model_fields["drain_timeout_s"].default
    assert grace_s > drain_s + 5 + FLUSH_S  # 5 s to send the last answers
    assert float(PROXY["stop_grace_period"].removesuffix("s")) > seconds("hard-stop-after", CONFIG.read_text())


def test_times_of_proxy_and_service_agree() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    keep_alive_s = float(REPLICA["environment"]["VIT_KEEP_ALIVE_S"])
    assert seconds("timeout http-keep-alive", text) < keep_alive_s
    assert seconds("pool-purge-delay", text) < keep_alive_s / 4
    assert seconds("timeout server", text) > 2 * Settings.model_fields["request_timeout_s"].default
    (most,) = re.findall(r"^    default-server .* maxconn (\d+) ", text, flags=re.MULTILINE)
    assert int(most) < int(REPLICA["environment"]["VIT_MAX_CONNECTIONS"])
    (checks,) = re.findall(r" fall (\d+) ", text)
    assert float(REPLICA["environment"]["VIT_DRAIN_DELAY_S"]) > 2 * int(checks) * seconds("inter", text)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed (Debian: docker-compose)")
def test_compose_merges_the_scaled_files() -> None:
    files = [argument for name in FILES for argument in ("-f", f"deploy/{name}")]
    command = ["docker-compose", "--project-directory", ".", *files, "config"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "TLS_DIR": "/tls"}
    merged = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert merged.returncode == 0, merged.stderr
    services = yaml.safe_load(merged.stdout)["services"]
    assert services.keys() == {"vit-serve", "haproxy", "prometheus", "grafana"}
    assert "ports" not in services["vit-serve"]
    assert services["haproxy"]["environment"] == {"PROXY_TLS": "/tls"}
    assert services["vit-serve"]["build"]["context"] == str(ROOT)


DOCKER = '''#!{python}
"""Docker and Compose of a test: containers are lines of a file; each call is a line of another."""
import pathlib, sys, time

here = pathlib.Path(__file__).parent
state, arguments = here / "containers", sys.argv[1:]
containers = state.read_text().split()
with (here / "calls").open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if "ps" in arguments:
    print(*containers, sep="\\n")
elif "up" in arguments:
    (wanted,) = [int(each.partition("=")[2]) for each in arguments if each.startswith("vit-serve=")]
    state.write_text(" ".join([*containers, *(f"new{{time.monotonic_ns()}}" for _ in range(wanted - len(containers)))]))
elif arguments[0] == "inspect":
    print({status!r})
elif arguments[0] == "rm":
    state.write_text(" ".join(each for each in containers if each != arguments[-1]))
'''


def update(folder: Path, status: str) -> tuple[int, list[str], list[str]]:
    """Run deploy/update.sh with two old containers; return its status, the containers after it, and what Docker was told."""
    (folder / "containers").write_text("old1 old2")
    (folder / "docker").write_text(DOCKER.format(python=sys.executable, status=status))
    (folder / "docker").chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = ["sh", str(DEPLOY / "update.sh"), "-f", "deploy/compose.tls.yml"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, (folder / "containers").read_text().split(), (folder / "calls").read_text().splitlines()


def test_update_replaces_one_by_one(tmp_path: Path) -> None:
    status, left, calls = update(tmp_path, "healthy")
    assert status == 0
    assert len(left) == 2
    assert not set(left) & {"old1", "old2"}
    acts = [call for call in calls if not call.endswith("ps -q vit-serve")]
    assert [next(word for word in ("up", "inspect", "stop", "rm") if word in call.split()) for call in acts] == [
        *("up", "inspect", "stop", "rm"),
        *("up", "inspect", "stop", "rm"),
    ]
    assert all("compose.scale.yml -f deploy/compose.tls.yml" in call for call in calls if "compose" in call)


def test_update_keeps_what_works(tmp_path: Path) -> None:
    status, left, calls = update(tmp_path, "unhealthy")
    assert status == 1
    assert left == ["old1", "old2"]
    assert not any(call.startswith("stop") for call in calls)

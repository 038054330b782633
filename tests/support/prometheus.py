"""Real Prometheus for tests: the binaries of the system, on a free port, scraping a server often."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from tests.support.monitoring import DEPLOY
from tests.support.server import Server

_TIMEOUT_S = 120
_INTERVAL = "250ms"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)


class Prometheus:
    """HTTP API of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[float]:
        """Return the values of an instant query, without those that are not numbers."""
        answer = httpx.post(f"{self._url}/api/v1/query", data={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", (expression, answer)
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if value == value]

    def rules(self) -> list[dict[str, Any]]:
        """Return the loaded alerts with their health."""
        groups = httpx.get(f"{self._url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait_for(self, expression: str) -> None:
        """Poll a query until it gives a value: a comparison gives none while it is false."""
        end = time.monotonic() + _TIMEOUT_S
        while not self.query(expression):
            assert time.monotonic() < end, f"Prometheus did not find {expression}"
            time.sleep(0.1)


def write_config(folder: Path, server: Server) -> Path:
    """Write the configuration of deploy/, for this server and with short intervals."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": _INTERVAL, "evaluation_interval": _INTERVAL}
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config), encoding="utf-8")  # which is YAML, too
    return file


@contextmanager
def running_prometheus(folder: Path, server: Server) -> Iterator[Prometheus]:
    """Start Prometheus, and end it at the end."""
    command = ["prometheus", f"--config.file={write_config(folder, server)}", f"--storage.tsdb.path={folder / 'data'}"]
    log = folder / "log"
    with log.open("w") as stderr, subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=stderr) as process:
        try:
            prometheus = Prometheus(f"http://{_address(process, log)}")
            prometheus.wait_for('up{job="vit-serve"} == 1')
            yield prometheus
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that Prometheus listens on, once its log has it."""
    end = time.monotonic() + _TIMEOUT_S
    while (found := re.search(r'Listening on".* address=(127\.0\.0\.1:\d+)', log.read_text(encoding="utf-8"))) is None:
        assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    return found[1]

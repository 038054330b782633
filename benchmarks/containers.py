"""Containers of a Compose project, by the commands that a user would type."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_PATIENCE_S = 240.0
_COMMAND_S = 300.0
_BUILD_S = 3600.0
_PREDICTED = """
import http.client
connection = http.client.HTTPConnection('127.0.0.1', 8000, timeout=30)
connection.request('GET', '/metrics')
lines = connection.getresponse().read().decode().splitlines()
requests = [line for line in lines if line.startswith('vit_http_requests_total{') and 'route="/predict"' in line]
print(sum(float(line.split()[-1]) for line in requests))
"""
"""Program that prints the number of predictions of the container it runs in, whose address nothing outside may reach."""


class CommandFailed(Exception):
    """A command of Docker or Compose ended with an error."""


def run(command: Sequence[str], timeout_s: float = _COMMAND_S, **variables: str) -> str:
    """Run a command in the project's folder and return what it prints.

    Raises:
        CommandFailed: its exit status is not 0, or it takes too long. The message has the end of its output.
    """
    try:
        ended = subprocess.run(
            command,
            cwd=_ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandFailed(f"{' '.join(command)}: {error}") from error
    if ended.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit status {ended.returncode}\n{(ended.stdout + ended.stderr)[-4000:]}")
    return ended.stdout


def compose_command() -> str:
    """Return the command of Compose: `COMPOSE`, or whichever is installed.

    Raises:
        CommandFailed: none is.
    """
    if chosen := os.environ.get("COMPOSE"):
        return chosen
    try:
        run(["docker", "compose", "version"])
    except CommandFailed:
        if shutil.which("docker-compose") is None:
            raise CommandFailed("neither `docker compose` nor `docker-compose` can be run") from None
        return "docker-compose"
    return "docker compose"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@dataclass
class Project:
    """Compose project with a name, a port and settings of its own."""

    name: str
    file: str
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    compose_command: str = field(default_factory=compose_command)

    @property
    def _variables(self) -> dict[str, str]:
        address = {"VIT_HOST": "127.0.0.1", "VIT_PORT": str(self.port)}
        return {"COMPOSE_PROJECT_NAME": self.name, "COMPOSE": self.compose_command, **address, **self.settings}

    def compose(self, *arguments: str, timeout_s: float = _COMMAND_S) -> str:
        command = [*self.compose_command.split(), "--project-directory", ".", "-f", self.file, *arguments]
        return run(command, timeout_s, **self._variables)

    def build(self) -> None:
        self.compose("build", timeout_s=_BUILD_S)

    def up(self, replicas: int) -> None:
        """Run so many replicas, without touching those that run, and wait until all containers are healthy."""
        self.compose("up", "-d", "--no-build", "--no-recreate", "--scale", f"vit-serve={replicas}")
        self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        end = time.monotonic() + _PATIENCE_S
        while any(state["Health"]["Status"] != "healthy" for state in self.states().values()):
            if time.monotonic() > end:
                raise CommandFailed(f"not healthy in {_PATIENCE_S:.0f} s:\n{self.compose('logs', '--tail=40')[-4000:]}")
            time.sleep(0.2)

    def update(self) -> None:
        run(["sh", "deploy/update.sh"], 10 * _COMMAND_S, **self._variables)

    def containers(self, service: str = "vit-serve") -> list[str]:
        return self.compose("ps", "-q", service).split()

    def states(self, containers: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Return Docker's state of containers; by default of all of the project that run."""
        found = containers or self.compose("ps", "-q").split()
        return {each["Id"]: each["State"] for each in json.loads(run(["docker", "inspect", *found]))}

    @contextmanager
    def removed_at_the_end(self) -> Iterator[None]:
        """Remove containers, network and volumes at the end. A failure of that is told, and hides no other."""
        try:
            yield
        finally:
            try:
                self.compose("down", "--volumes", "--timeout", "5")
            except CommandFailed as error:
                sys.stderr.write(f"not removed: {error}\n")


def predictions(container: str) -> float:
    """Return the number of requests to `/predict` that a replica has answered."""
    return float(run(["docker", "exec", container, "python", "-c", _PREDICTED]))


def environment_of(container: str) -> list[str]:
    (found,) = json.loads(run(["docker", "inspect", container]))
    variables: list[str] = found["Config"]["Env"]
    return variables


def image_mib(image: str) -> float:
    (found,) = json.loads(run(["docker", "image", "inspect", image]))
    return float(found["Size"]) / 2**20

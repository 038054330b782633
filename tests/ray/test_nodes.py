"""A cluster of two nodes on one machine, one of which dies; and Ray's command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is an extra: make ray-test")

import httpx
from ray import serve

from app.ray import Options
from tests.support.models import ROOT
from tests.support.ray_serve import NAME, URL, Clients, deployed, predict, replicas, running, wait_for

pytestmark = pytest.mark.filterwarnings("default")  # of Ray's own code


def test_killed_node_is_survived_and_replaced(ray_cluster: Any, tiny_checkpoint: Path) -> None:
    node = ray_cluster.add_node(num_cpus=2)
    try:
        # two cores for each, so that one replica fits on each node
        with deployed(Options(replicas=2, cpus=2), model=tiny_checkpoint):
            assert [len(replicas(each)) for each in (ray_cluster.head_node, node)] == [1, 1]
            clients = Clients(4)
            with clients.sending():
                clients.answered(50)
                ray_cluster.remove_node(node, allow_graceful=False)
                wait_for(lambda: running() == 1)
                clients.answered(50)
                lost = sum(number for outcome, number in clients.outcomes.items() if outcome != "200")
                node = ray_cluster.add_node(num_cpus=2)
                wait_for(lambda: running() == 2 and len(replicas(node)) == 1)
                clients.answered(50)
            assert lost <= 4, clients.outcomes  # no more than there are clients: what was in flight
            assert sum(number for outcome, number in clients.outcomes.items() if outcome != "200") == lost
    finally:
        ray_cluster.remove_node(node)


def test_command_deploys_to_a_running_cluster(ray_cluster: Any, tiny_checkpoint: Path) -> None:
    # the cluster was started without these variables; the replicas get them all the same
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address, "VIT_MODEL": str(tiny_checkpoint)}
    command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking", "--name", NAME, "app.ray:app", "cpus=1"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, timeout=120, capture_output=True, text=True, check=False)
    try:
        assert ended.returncode == 0, ended.stderr
        wait_for(lambda: running() == 1)
        with httpx.Client(base_url=URL, timeout=60) as client:
            assert predict(client).json()["model"] == tiny_checkpoint.name
    finally:
        serve.delete(NAME)

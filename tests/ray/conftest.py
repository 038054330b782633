"""A cluster of Ray on this machine, for all tests of this folder; they are skipped where Ray is not installed."""

import importlib
import importlib.util
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator

import pytest

# before Ray is imported: it reads them then
os.environ |= {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "3",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the node's address is 127.0.0.1, on Linux too
}


if importlib.util.find_spec("ray"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray uses what pydantic has deprecated
        importlib.import_module("ray.serve")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[object]:
    """Cluster whose first node has two cores, by Ray's count, and HAProxy on 127.0.0.1."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from tests.support.ray_serve import PORT

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as directory:
        cluster = Cluster(
            head_node_args={"num_cpus": 2, "include_dashboard": False, "temp_dir": directory}, initialize_head=True
        )
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
            yield cluster
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()

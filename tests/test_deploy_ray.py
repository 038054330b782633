"""The manifests for KubeRay, checked without a cluster; tests/ray has what needs Ray."""

from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]  # has no types
from packaging.utils import canonicalize_name

from app.settings import Settings
from tests.support.models import ROOT
from tests.support.rayservice import FOLDER, gpu_patches, rayservice, serve_configs
from tests.test_dependencies import PINS
from tests.test_deploy import KUBERNETES_VERSION, MANIFESTS

CLUSTER = rayservice()["rayClusterConfig"]
PODS: dict[str, dict[str, Any]] = {
    "head": CLUSTER["headGroupSpec"]["template"]["spec"],
    "worker": CLUSTER["workerGroupSpecs"][0]["template"]["spec"],
}


@pytest.mark.parametrize("pod", PODS)
def test_pod_is_valid(pod: str) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": PODS[pod]}
    kubernetes_validate.validate(whole, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_pod_has_the_rights_of_our_own(pod: str) -> None:
    ours = MANIFESTS["base/deployment.yml"]["spec"]["template"]["spec"]
    (container,), (our_container,) = PODS[pod]["containers"], ours["containers"]
    for name in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
        assert PODS[pod][name] == ours[name]
    assert container["securityContext"] == our_container["securityContext"]
    assert container["volumeMounts"] == our_container["volumeMounts"]
    assert container["image"].startswith("vit-serve:")


@pytest.mark.parametrize("pod", PODS)
def test_pod_runs_ray_as_documented(pod: str) -> None:
    (container,) = PODS[pod]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}.items() <= environment.items()
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    page = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    assert all(name in page for name in environment if name.startswith("RAY_"))


@pytest.mark.parametrize("pod", PODS)
def test_pod_outlives_its_replicas(pod: str) -> None:
    leaving_s, last_s = 30, 5
    assert PODS[pod]["terminationGracePeriodSeconds"] > leaving_s + Settings.model_fields["drain_timeout_s"].default + last_s


def test_ray_is_the_pinned_one() -> None:
    assert f"=={CLUSTER['rayVersion']}" == PINS[canonicalize_name("ray")]
    assert CLUSTER["authOptions"] == {"mode": "token"}


def test_workers_hold_the_replicas() -> None:
    (workers,), (container,) = CLUSTER["workerGroupSpecs"], PODS["worker"]["containers"]
    (served,) = serve_configs()["cpu"]["applications"]
    assert served["args"]["replicas"] * served["args"]["cpus"] == workers["replicas"] * int(
        container["resources"]["limits"]["cpu"]
    )
    (shared,) = serve_configs()["gpu"]["applications"]
    limits = gpu_patches()["/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/resources"]["limits"]
    assert shared["args"]["replicas"] * shared["args"]["gpus"] == workers["replicas"] * int(limits["nvidia.com/gpu"])
    assert shared["args"]["replicas"] * shared["args"]["cpus"] == workers["replicas"] * int(limits["cpu"])


@pytest.mark.parametrize("path", gpu_patches())
def test_gpu_patches_what_is_there(path: str) -> None:
    found: Any = {"spec": rayservice()}
    *parents, last = path.strip("/").split("/")
    for part in parents:
        found = found[int(part) if part.isdigit() else part]
    assert last in found or last == "tolerations"


def test_metrics_are_for_monitoring_alone() -> None:
    policy = yaml.safe_load((FOLDER / "network-policy.yml").read_text())
    kubernetes_validate.validate(policy, KUBERNETES_VERSION, strict=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == CLUSTER["headGroupSpec"]["template"]["metadata"]["labels"]
    public, monitoring, cluster = policy["spec"]["ingress"]
    assert public == {"ports": [{"port": "http"}]}
    assert monitoring["from"]
    assert cluster["from"]
    for config in serve_configs().values():
        (served,) = config["applications"]
        port = int(served["runtime_env"]["env_vars"]["VIT_METRICS_PORT"])
        assert monitoring["ports"][0]["port"] == port
        assert monitoring["ports"][0]["endPort"] >= port + served["args"]["replicas"] / 2 - 1

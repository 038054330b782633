"""Description of the application that Ray gets, and when a replica counts as healthy."""

import os
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is an extra: make ray-test")

from structlog.testing import capture_logs

from app.errors import StartError
from app.ray import Options, VitServe, app
from app.serving.service import Service
from app.settings import Settings
from tests.support.ray_serve import variables

pytestmark = pytest.mark.filterwarnings("default")  # of Ray's own code


def deployment(**options: object) -> object:
    return app(Options.model_validate(options))._bound_deployment


def test_service_refuses_before_ray_does() -> None:
    with variables(max_inflight_images=5000):
        config = deployment()._deployment_config  # type: ignore[attr-defined]
    assert config.max_ongoing_requests > 5000
    assert config.max_queued_requests > 0


def test_ray_waits_longer_than_a_drain() -> None:
    with variables(drain_timeout_s=100):
        config = deployment()._deployment_config  # type: ignore[attr-defined]
    leaving_s = float(os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
    assert config.graceful_shutdown_timeout_s > 100 + leaving_s


def test_replicas_can_share_a_gpu() -> None:
    found = deployment(replicas=4, cpus=2, gpus=0.25)
    assert found.num_replicas == 4  # type: ignore[attr-defined]
    assert found.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.25}  # type: ignore[attr-defined]


def test_cores_are_those_of_inference() -> None:
    with variables(inference_threads=3):
        assert deployment().ray_actor_options["num_cpus"] == 3  # type: ignore[attr-defined]
        assert app(Options(cpus=1))._bound_deployment.init_args[0]["VIT_INFERENCE_THREADS"] == "3"
    assert app(Options(cpus=7))._bound_deployment.init_args[0]["VIT_INFERENCE_THREADS"] == "7"


def test_autoscaling_aims_at_requests_in_flight() -> None:
    config = deployment(replicas=2, max_replicas=9, cpus=3)._deployment_config.autoscaling_config  # type: ignore[attr-defined]
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (2, 9, 12)


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="replica"):
        Options.model_validate({"replica": 2})


def test_limit_by_address_is_refused() -> None:
    with variables(rate_limit_per_address="1/second"), pytest.raises(StartError, match="RATE_LIMIT_PER_ADDRESS"):
        app(Options())


def test_slow_proxy_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    with capture_logs() as lines:
        app(Options())
    assert any("RAY_SERVE_ENABLE_HA_PROXY" in line["event"] for line in lines)


def test_setting_with_a_typo_is_warned_of() -> None:
    with variables(modle="/models/mine"), capture_logs() as lines:
        app(Options())
    assert any("VIT_MODLE is not a setting" in line["event"] for line in lines)


async def test_health_follows_the_service(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_MODEL", "")  # restores what the replica sets
    replica = VitServe({"VIT_MODEL": str(tiny_checkpoint)})
    served = replica.__serve_build_asgi_app__()
    async with served.router.lifespan_context(served):
        await replica.check_health()  # returns once the model is loaded
        assert served.state.vit_serve.service.why_not_ready is None
        monkeypatch.setattr(Service, "why_not_ready", "The inference worker has died.")
        with pytest.raises(StartError, match="worker has died"):
            await replica.check_health()
        served.state.vit_serve.service.draining = True
        await replica.check_health()


async def test_failed_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_MODEL", "")  # restores what the replica sets
    replica = VitServe({"VIT_MODEL": "/no/such/model"})
    served = replica.__serve_build_asgi_app__()
    async with served.router.lifespan_context(served):
        with pytest.raises(StartError, match="/no/such/model does not exist"):
            await replica.check_health()


def test_settings_reach_the_replicas() -> None:
    with variables(model="/models/mine"):
        sent = app(Options())._bound_deployment.init_args[0]
    assert sent["VIT_MODEL"] == "/models/mine"
    assert {name for name in sent if not name.startswith("VIT_")} == set()
    assert Settings.model_fields["metrics_port"].default is None

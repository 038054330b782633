"""Ray Serve's configurations in the manifests for KubeRay, by Ray's own schema."""

import pytest

pytest.importorskip("ray", reason="Ray is an extra: make ray-test")

from ray.serve.schema import ServeDeploySchema

import app.ray
from app.ray import Options
from tests.support.ray_serve import variables
from tests.support.rayservice import serve_configs

pytestmark = pytest.mark.filterwarnings("default")  # of Ray's own code


@pytest.mark.parametrize(("variant", "gpus"), [("cpu", 0), ("gpu", 0.25)])
def test_ray_builds_what_the_manifest_names(variant: str, gpus: float) -> None:
    (application,) = ServeDeploySchema.model_validate(serve_configs()[variant]).applications
    assert (application.import_path, application.route_prefix) == ("app.ray:app", "/")
    settings = {name.removeprefix("VIT_"): value for name, value in application.runtime_env["env_vars"].items()}
    with variables(**settings):
        built = app.ray.app(Options.model_validate(application.args))._bound_deployment
    assert built.num_replicas == application.args["replicas"]
    assert built.ray_actor_options == {"num_cpus": application.args["cpus"], "num_gpus": gpus}
    assert built.init_args[0]["VIT_API_KEYS_FILE"] == "/keys/api-keys"


def test_schema_finds_a_typo() -> None:
    config = serve_configs()["cpu"]
    config["applications"][0]["import_pth"] = config["applications"][0].pop("import_path")
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(config)

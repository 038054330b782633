"""The manifests of deploy/ray, and what they give Ray to run."""

from typing import Any

import yaml  # type: ignore[import-untyped]  # has no types

from tests.support.models import ROOT

FOLDER = ROOT / "deploy" / "ray"


def rayservice() -> dict[str, Any]:
    specification: dict[str, Any] = yaml.safe_load((FOLDER / "rayservice.yml").read_text())["spec"]
    return specification


def gpu_patches() -> dict[str, Any]:
    """Return the values that deploy/ray/gpu puts in place of others, by path."""
    (patch,) = yaml.safe_load((FOLDER / "gpu" / "kustomization.yml").read_text())["patches"]
    return {operation["path"]: operation["value"] for operation in yaml.safe_load(patch["patch"])}


def serve_configs() -> dict[str, dict[str, Any]]:
    """Return Ray Serve's configuration in each variant."""
    texts = {"cpu": rayservice()["serveConfigV2"], "gpu": gpu_patches()["/spec/serveConfigV2"]}
    return {name: yaml.safe_load(text) for name, text in texts.items()}

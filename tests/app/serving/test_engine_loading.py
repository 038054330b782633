"""Loading onto an engine: from the cache without torch, by a process that converts, or by torch here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from app.converting.process import converted
from app.engines import Engine
from app.engines.kept_model import KeptModel
from app.engines.select import OPENVINO
from app.errors import InsufficientMemory, StartError
from app.process.child import start_child
from app.serving.engine_loading import LoadedModel, load_engine
from app.settings import Settings, read_settings
from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.description import Description

IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 3, 28, 28), dtype=np.uint8))


def settings_of(model: Path, cache: Path, **changes: Any) -> Settings:
    return read_settings(**{"model": model, "cache_dir": cache, "engine": "auto", "inference_threads": 2, **changes})


def load(
    settings: Settings, accept: Callable[[Description], None] = lambda _: None, *, low_priority: bool = False
) -> LoadedModel:
    return load_engine(settings, accept, lambda step: None, low_priority=low_priority)


def logits_of(engine: Engine) -> NDArray[np.float32]:
    return engine.run(IMAGES, use_all_cores=True)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A cache that keeps the tiny model."""
    directory = tmp_path_factory.mktemp("cache")
    load(settings_of(tiny_checkpoint, directory))
    return directory


@pytest.fixture
def copied(tmp_path: Path, cache: Path) -> Path:
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules of the processes that are started."""
    started: list[str] = []

    def counted(module: str, descriptor: int) -> Any:
        started.append(module)
        return start_child(module, descriptor)

    monkeypatch.setattr("app.converting.process.start_child", counted)
    return started


def test_kept_model_is_the_whole_start(tiny_checkpoint: Path, cache: Path, conversions: list[str]) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    accepted: list[Description] = []
    loaded = load(settings_of(tiny_checkpoint, cache), accepted.append)
    assert conversions == []
    assert accepted == [loaded.description] == [checkpoint.describe()]
    assert (loaded.engine.name, loaded.engine.max_batch_size) == ("openvino", 16)
    by_torch = load(settings_of(tiny_checkpoint, cache, engine="torch"))
    assert by_torch.description == loaded.description
    expected = logits_of(by_torch.engine)
    np.testing.assert_allclose(logits_of(loaded.engine), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_changed_labels_are_served(tmp_path: Path, tiny_checkpoint: Path, copied: Path, conversions: list[str]) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    settings = settings_of(copy, copied)
    labels = load(settings).description.labels
    assert conversions == []
    config = json.loads((copy / "config.json").read_text())
    config["id2label"]["0"] = "another"
    (copy / "config.json").write_text(json.dumps(config))
    assert load(settings).description.labels == ("another", *labels[1:])
    assert len(conversions) == 1


def test_changed_weights_are_served(tmp_path: Path, tiny_checkpoint: Path, copied: Path, conversions: list[str]) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    settings = settings_of(copy, copied)
    before = logits_of(load(settings).engine)
    assert conversions == []
    state = load_file(copy / "model.safetensors")
    state["classifier.bias"][0] += 1e-3  # less than the comparison at the start would notice
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    after = logits_of(load(settings).engine)
    assert len(conversions) == 1
    np.testing.assert_allclose((after - before)[:, 0], 1e-3, rtol=0.05)


@pytest.mark.parametrize("changes", [{"embed": False}, {"activation": "sigmoid"}, {"image_size": 42}], ids=str)
def test_other_settings_are_converted(
    tiny_checkpoint: Path, copied: Path, conversions: list[str], changes: dict[str, Any]
) -> None:
    loaded = load(settings_of(tiny_checkpoint, copied, **changes))
    assert len(conversions) == 1
    side = loaded.description.image_size
    images = [np.zeros((3, side, side), np.uint8)]
    expected = load(settings_of(tiny_checkpoint, copied, engine="torch", **changes)).engine.run(images, use_all_cores=True)
    got = loaded.engine.run(images, use_all_cores=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def nan(file: Path) -> None:
    file.write_bytes(np.full(file.stat().st_size // 4, np.nan, np.float32).tobytes())


def no_labels(file: Path) -> None:
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"description": {**facts["description"], "labels": []}}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [("facts.json", no_labels), ("facts.json", Path.unlink), ("reference.safetensors", nan), ("model.bin", nan)],
)
def test_damage_costs_one_conversion(
    tiny_checkpoint: Path,
    copied: Path,
    conversions: list[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    (entry,) = (copied / OPENVINO).iterdir()
    damage(entry / name)
    for _ in range(2):
        loaded = load(settings_of(tiny_checkpoint, copied))
        assert len(conversions) == 1
    assert loaded.description.labels
    (warning,) = warnings_in(caplog)
    assert "is unusable, converting again" in warning


def test_wrong_logits_in_the_cache_are_noticed(
    tiny_checkpoint: Path, copied: Path, conversions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (entry,) = (copied / OPENVINO).iterdir()
    kept = KeptModel(entry)
    reference, facts = kept.reference(), kept.facts()
    reference.output[0, 0] += 0.01 * reference.sizes[0]
    model = openvino.Core().read_model(kept.graph)
    kept.write(lambda graph: openvino.save_model(model, graph, compress_to_fp16=False), reference, facts)
    assert kept.verify()
    load(settings_of(tiny_checkpoint, copied))
    assert len(conversions) == 1
    (warning,) = warnings_in(caplog)
    assert "away from torch's" in warning


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("Check failed")


def test_what_openvino_cannot_run_falls_back(
    tiny_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.engines.openvino.OpenVinoEngine.run", fail)
    loaded = load(settings_of(tiny_checkpoint, cache))
    assert loaded.engine.name == "torch"
    assert "falling back to torch, which is slower" in warnings_in(caplog)[-1]
    with pytest.raises(StartError, match=r"^VIT_ENGINE: OpenVINO cannot run this model: Check failed$"):
        load(settings_of(tiny_checkpoint, cache, engine="openvino"))


def test_unwritable_cache_never_stops_a_start(
    tiny_checkpoint: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(tiny_checkpoint, Path("/dev/null/cache"))
    assert load(settings).engine.name == "openvino"
    monkeypatch.setattr("tempfile.TemporaryDirectory", fail_to_make)
    assert load(settings).engine.name == "openvino"  # converted here
    assert len(conversions) == 2
    message = "cannot cache the OpenVINO model; every start will convert it again"
    assert [message in warning for warning in warnings_in(caplog)] == [True, True]


def fail_to_make(**_: object) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_refusal_comes_before_memory(tiny_checkpoint: Path, cache: Path, engine: str) -> None:
    def refuse(_: Description) -> None:
        raise InsufficientMemory("no room")

    with pytest.raises(InsufficientMemory, match="no room"):
        load(settings_of(tiny_checkpoint, cache, engine=engine), refuse)


def test_load_at_low_priority_leaves_the_cores(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spied(request: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(request.low_priority)
        return converted(request, *arguments, **options)

    monkeypatch.setattr("app.serving.engine_loading.converted", spied)
    load(settings_of(tiny_checkpoint, tmp_path), low_priority=True)
    load(settings_of(tiny_checkpoint, tmp_path), low_priority=True)
    assert asked == [True]
    before = torch.get_num_threads()
    load(settings_of(tiny_checkpoint, tmp_path, engine="torch"), low_priority=True)
    assert torch.get_num_threads() == before

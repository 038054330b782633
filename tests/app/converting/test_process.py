"""The process that converts: what it says reaches the service, and it never outlives it."""

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.converting import process as module
from app.converting.process import ConversionFailed, NowhereToKeep, converted
from app.converting.request import ConversionRequest
from app.engines.kept_model import KeptModel
from app.errors import StartError
from app.process.child import start_child
from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.description import Description
from model.checkpoints.location import locate
from tests.support.models import write_tiny_checkpoint

UNWRITABLE = KeptModel(Path("/dev/null/openvino/key"))


class Told:
    """Record of all that a conversion told the service."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.descriptions: list[Description] = []
        self.reasons: list[str] = []

    def as_arguments(self) -> dict[str, Any]:
        return {"on_step": self.steps.append, "accept": self.descriptions.append, "on_uncached": self.reasons.append}


def request_of(model: Path, **changes: Any) -> ConversionRequest:
    made = ConversionRequest(locate(model), None, None, "auto", "auto", False, "float32", "float32", 1, False)
    return replace(made, **changes)


def test_conversion_is_kept(tmp_path: Path, tiny_checkpoint: Path) -> None:
    told, request, kept = Told(), request_of(tiny_checkpoint), KeptModel(tmp_path / "key")
    with converted(request, kept, request.key(), **told.as_arguments()) as made:
        assert made.path == kept.path
    assert kept.verify()
    steps = ["reading the configuration", "reading the weights", "preparing the engine", "converting the model for OpenVINO"]
    assert told.steps == steps
    assert told.reasons == []
    expected = load_checkpoint(tiny_checkpoint).describe()
    assert told.descriptions == [expected]
    facts = kept.facts()
    assert (Description.of_json(facts["description"]), facts["batch_size"]) == (expected, 16)


def test_unwritable_cache_costs_a_temporary_one(tiny_checkpoint: Path) -> None:
    told, request = Told(), request_of(tiny_checkpoint)
    with converted(request, UNWRITABLE, request.key(), **told.as_arguments()) as made:
        assert made.verify()
    assert not made.path.exists()
    (reason,) = told.reasons
    assert "Not a directory" in reason


def test_no_place_at_all_is_told(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    conversion = converted(request_of(tiny_checkpoint), UNWRITABLE, None, **Told().as_arguments())
    with pytest.raises(NowhereToKeep, match="Not a directory"), conversion:
        pass


def without_class(directory: Path) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 13}))


def truncated(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 1000)


@pytest.mark.parametrize("damage", [without_class, truncated])
def test_bad_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    request = request_of(write_tiny_checkpoint(tmp_path / "model"))
    damage(tmp_path / "model")
    with pytest.raises(Exception, match="model") as here:
        load_checkpoint(tmp_path / "model")
    conversion = converted(request, KeptModel(tmp_path / "key"), request.key(), **Told().as_arguments())
    with pytest.raises(StartError) as told, conversion:
        pass
    assert str(told.value) == f"VIT_MODEL: {here.value}"
    assert not isinstance(told.value, ConversionFailed)


def test_changed_checkpoint_is_not_kept(tmp_path: Path, tiny_checkpoint: Path) -> None:
    conversion = converted(request_of(tiny_checkpoint), KeptModel(tmp_path / "key"), "of before", **Told().as_arguments())
    with pytest.raises(StartError, match="was changed while it was read; start again") as told, conversion:
        pass
    assert not isinstance(told.value, ConversionFailed)
    assert list(tmp_path.iterdir()) == []


def test_refusal_ends_the_process(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(start_child(*arguments))
        return started[0]

    def refuse(_: Description) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(module, "start_child", start)
    arguments = Told().as_arguments() | {"accept": refuse}
    conversion = converted(request_of(tiny_checkpoint), KeptModel(tmp_path / "key"), None, **arguments)
    with pytest.raises(MemoryError, match="no room"), conversion:
        pass
    started[0].wait(60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "kind"), [("reading the weights", StartError), ("converting", ConversionFailed)])
def test_killed_process_is_told(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: type[StartError]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(start_child(*arguments))
        return started[0]

    def kill(doing: str) -> None:
        if doing.startswith(step):
            started[0].send_signal(signal.SIGKILL)

    monkeypatch.setattr(module, "start_child", start)
    arguments = Told().as_arguments() | {"on_step": kill}
    conversion = converted(request_of(tiny_checkpoint), KeptModel(tmp_path / "key"), None, **arguments)
    with pytest.raises(StartError, match="ended by signal 9: there may be too little memory") as told, conversion:
        pass
    assert type(told.value) is kind


def test_process_ends_with_the_service(tmp_path: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = start_child("app.converting.process_main", theirs.fileno())
    asked = {"request": request_of(tiny_checkpoint).as_json(), "key": None, "places": [str(tmp_path / "key")], "log_level": 30}
    ours.sendall(json.dumps(asked).encode() + b"\n")
    assert ours.recv(1)  # it is at work
    for sig in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(sig)  # as a terminal does, to all processes
    ours.close()
    assert process.wait(60) == 1
    assert list(tmp_path.iterdir()) == []


def test_warnings_reach_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model")
    state = load_file(directory / "model.safetensors")
    torch.save({"state_dict": state, "state_dict_ema": state}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with caplog.at_level("WARNING"), converted(request_of(directory), None, None, **Told().as_arguments()) as made:
        assert made.verify()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("model.checkpoints.checkpoint", "WARNING")
    assert "the weights are the moving average (state_dict_ema)" in record.getMessage()

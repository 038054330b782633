"""Peers of both kinds: what they are started with, and that either engine answers as our model does."""

import ast
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from app.engines.conversion import openvino_engine, save_for_others
from app.engines.openvino import OpenVinoOptions
from app.engines.pixel_model import engine_model
from benchmarks import contenders, peers
from benchmarks.contenders import Contender, Predictions, check_answers, difference, predictions
from benchmarks.peers import KINDS, PEERS, install
from model.checkpoints.checkpoint import load_checkpoint
from tests.support.models import png

HERE = Path(peers.__path__[0])
HARNESS = {"__init__.py", "install.py"}
SERVERS = sorted(file for file in HERE.glob("*.py") if file.name not in HARNESS)
COMPILED = ("NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "ENABLE_CPU_PINNING")

Load = Callable[..., Any]


@pytest.fixture
def peer_model(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Iterator[Load]:
    """Return what makes the model of a peer from variables, as its server does, in this environment."""
    monkeypatch.syspath_prepend(str(HERE))
    before = set(sys.modules)

    def load(**variables: object) -> Any:
        monkeypatch.setenv("PEER_MODEL", str(tiny_checkpoint))
        for name, value in variables.items():
            monkeypatch.setenv(f"PEER_{name.upper()}", str(value))
        return importlib.import_module("common").model_from_environment()

    yield load
    for name in {"common", "eager", "with_openvino"} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def converted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("converted") / "model.xml"
    save_for_others(engine_model(load_checkpoint(tiny_checkpoint), with_features=True), file)
    return file


def of_our_model(checkpoint: Path, pixels: np.ndarray) -> list[Predictions]:
    """Return the top five of each image by our model in torch."""
    loaded = load_checkpoint(checkpoint)
    with torch.inference_mode():
        probabilities = engine_model(loaded)(torch.from_numpy(pixels)).softmax(dim=1)
    rows = (zip(*row.topk(5), strict=True) for row in probabilities)
    return [[(loaded.labels[int(index)], float(value)) for value, index in row] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_peer_answers_as_we_do(kind: str, peer_model: Load, converted: Path, tiny_checkpoint: Path) -> None:
    given = {"openvino": converted} if kind == "openvino" else {}
    model = peer_model(threads=1, streams=1, **given)
    pixels = np.stack([importlib.import_module("common").Decoder(tiny_checkpoint).decode(png(seed)) for seed in (0, 1)])
    batch = np.stack([model.decode(png(seed)) for seed in (0, 1)])
    assert batch.dtype == (np.uint8 if kind == "openvino" else np.float32)
    theirs = [predictions(json.dumps(answer).encode()) for answer in model.classify(batch)]
    assert difference(theirs, of_our_model(tiny_checkpoint, pixels), tolerance=1e-4) == ""


def test_compiled_as_in_the_service(peer_model: Load, converted: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = engine_model(load_checkpoint(tiny_checkpoint))
    engine = openvino_engine(model, OpenVinoOptions("float32", 1, 2), tmp_path)
    layouts = {(1, 2): engine._batches, (2, 1): engine._lone}
    for (threads, streams), ours in layouts.items():
        theirs = peer_model(openvino=converted, threads=threads, streams=streams).compiled
        for name in COMPILED:
            assert theirs.get_property(name) == ours.get_property(name), (name, threads, streams)


def test_every_server_has_both_kinds() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    by_kind = {kind: [(peer.server, peer.layout) for peer in PEERS if peer.kind == kind] for kind in KINDS}
    assert by_kind["eager"] == by_kind["openvino"]


def test_only_openvino_gets_the_converted(tmp_path: Path) -> None:
    for peer in PEERS:
        given = peer.environ(tmp_path, 8000, 16, tmp_path / "model.xml").get("PEER_OPENVINO")
        assert given == (str(tmp_path / "model.xml") if peer.kind == "openvino" else None)


def test_openvino_without_a_model_is_refused(tmp_path: Path) -> None:
    peer = next(peer for peer in PEERS if peer.kind == "openvino")
    with pytest.raises(ValueError, match="needs a converted model"):
        peer.environ(tmp_path, 8000, 16)


def test_ray_runs_behind_haproxy(tmp_path: Path) -> None:
    ray = next(peer for peer in PEERS if peer.environment == "ray")
    variables = ray.environ(tmp_path, 8000, 16)
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert all(variables[name].isdecimal() for name in ray.ports)


@pytest.mark.parametrize("environment", install.PEER_REQUIREMENTS)
def test_environments_pin_our_openvino(environment: str) -> None:
    ours = next(line for line in (peers.ROOT / "constraints.txt").read_text().splitlines() if line.startswith("openvino=="))
    assert "openvino" in install.MODEL_REQUIREMENTS
    assert ours in install._pins(environment)


@pytest.mark.parametrize("file", SERVERS, ids=lambda file: file.name)
def test_peers_import_nothing_of_ours(file: Path) -> None:
    trees = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in trees for alias in node.names if isinstance(node, ast.Import)}
    names |= {node.module or "" for node in trees if isinstance(node, ast.ImportFrom)}
    assert names
    assert not {name.partition(".")[0] for name in names} & {"app", "model", "benchmarks", "tests"}


OURS = [("cat", 0.6), ("dog", 0.3), ("fox", 0.05)]


@pytest.mark.parametrize("theirs", [OURS, [("cat", 0.61)], [("cat", 0.59), ("fox", 0.4)]])
def test_same_answers_pass(theirs: Predictions) -> None:
    assert difference([OURS, theirs], [OURS, OURS], tolerance=0.02) == ""


@pytest.mark.parametrize("theirs", [[("dog", 0.6)], [("dog", 0.3)], [("cat", 0.5)], [("owl", 0.6)]])
def test_other_answers_are_told(theirs: Predictions) -> None:
    assert difference([OURS, theirs], [OURS, OURS], tolerance=0.02).startswith(f"image 1 is {theirs[0][0]} with")


def test_either_of_two_as_likely_passes() -> None:
    ours = [("cat", 0.45), ("dog", 0.44)]
    assert difference([[("dog", 0.45)]], [ours], tolerance=0.02) == ""


def test_list_of_one_answer_is_read() -> None:
    answer = {"predictions": [{"label": "cat", "probability": 0.75, "logit": 2.0}]}
    assert predictions(json.dumps([answer]).encode()) == predictions(json.dumps(answer).encode()) == [("cat", 0.75)]


ANSWER = [(200, json.dumps({"predictions": [{"label": "cat", "probability": 0.6}]}).encode())]


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        ([ANSWER], None),
        ([ConnectionResetError(), ANSWER], None),
        ([ConnectionResetError()], "it does not answer: ConnectionResetError"),
        ([[(503, b'{"detail": "busy"}')]], "its answers are errors"),
        ([[(500, b"Internal Server Error")]], "its answers are errors"),
    ],
    ids=str,
)
def test_peer_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, theirs: list[Any], why: str | None) -> None:
    turns = itertools.chain(theirs, itertools.repeat(theirs[-1]))

    def ask(target: Any) -> Any:
        answer = ANSWER if target == "ours" else next(turns)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(contenders, "ask", ask)
    monkeypatch.setattr(contenders, "_PAUSE_S", 0)
    targets: dict[str, Any] = {contenders.OURS: "ours", "peer": "theirs"}
    found = [Contender(name, "", MagicMock(), target) for name, target in targets.items()]
    assert check_answers(found, tolerance=0.02) == ({} if why is None else {"peer": why})


def test_peer_that_is_gone_is_asked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = MagicMock(side_effect=[ANSWER, *[ConnectionResetError()] * 99])
    monkeypatch.setattr(contenders, "ask", answers)
    monkeypatch.setattr(contenders, "_PAUSE_S", 0)
    found = [Contender(name, "", MagicMock(), MagicMock()) for name in (contenders.OURS, "peer")]
    assert check_answers(found, tolerance=0.02) == {"peer": "it does not answer: ConnectionResetError"}
    assert answers.call_count == 1 + contenders._TRIES

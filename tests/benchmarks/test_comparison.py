"""Tables beside the peers of each kind, from made-up measurements."""

from collections.abc import Mapping

import pytest

from app.bench.load import Load
from benchmarks.comparison import COMPARED_AT, Comparison, best_peers, goals, verdicts
from benchmarks.contenders import OURS
from benchmarks.measure import Samples
from benchmarks.models import MODELS
from benchmarks.peers import PEERS, Kind

BUNDLED = MODELS[0]
SERVERS = ("fastapi", "mosec-workers")


def comparison(kind: Kind, rates: Mapping[str, tuple[float, float]], ours: tuple[float, float] = (100.0, 200.0)) -> Comparison:
    """Return a comparison from each server's rates for one client and for 32; two rounds, the second at half the speed."""
    peers = [peer for peer in PEERS if peer.kind == kind and peer.server in rates]
    named = {OURS: ours, **{peer.name: rates[peer.server] for peer in peers}}
    samples, loads = {}, {}
    for name, both in named.items():
        for clients, rate in zip(COMPARED_AT, both, strict=True):
            samples[f"{name}, {clients}"] = Samples((rate, rate / 2))
            p50 = clients / rate
            loads[f"{name}, {clients}"] = [Load("", rate, p50, p50, p50, 0, 0.0)] * 2
    return Comparison(kind, samples, loads, peers)


EAGER = comparison("eager", {"fastapi": (50.0, 40.0), "mosec-workers": (25.0, 100.0)})
OPENVINO = comparison("openvino", {"fastapi": (125.0, 160.0), "mosec-workers": (80.0, 190.0)})


def test_both_kinds_stand_side_by_side() -> None:
    rows = {row.names[0]: row for row in best_peers(BUNDLED, [EAGER, OPENVINO]).rows}
    assert list(rows) == [OURS, *SERVERS]
    assert rows["fastapi"].numbers == pytest.approx(
        {
            "eager_1": 37.5, "over_eager_1": 2, "openvino_1": 93.75, "over_openvino_1": 0.8,
            "eager_32": 30, "over_eager_32": 5, "openvino_32": 120, "over_openvino_32": 1.25,
        }
    )  # fmt: skip
    assert rows["fastapi"].shown["32 clients, OpenVINO: a second (ours over it)"] == "120.0 (1.25)"


def test_best_of_each_kind_is_named() -> None:
    found = {row.names[0]: row.numbers["value"] for row in verdicts(BUNDLED, [EAGER, OPENVINO]).rows}
    assert list(found.values()) == pytest.approx([2, 0.5, 200 / 190, 1.25])
    assert all(f", {server} " in what for server, what in zip(("mosec-workers", "fastapi") * 2, found, strict=True))


def test_goals_with_our_model_inside() -> None:
    rows = verdicts(BUNDLED, [EAGER, OPENVINO]).rows
    assert [row.shown["verdict"] for row in rows] == ["met", "MISSED", "met", "MISSED"]
    assert goals(BUNDLED, "openvino").throughput < goals(BUNDLED, "eager").throughput


def test_one_kind_alone_has_its_columns() -> None:
    section = best_peers(BUNDLED, [EAGER])
    assert not any("OpenVINO" in heading for row in section.rows for heading in row.shown)
    assert len(verdicts(BUNDLED, [EAGER]).rows) == 2


def test_unmeasured_kind_has_no_verdict() -> None:
    assert len(verdicts(BUNDLED, [comparison("eager", {}), OPENVINO]).rows) == 2

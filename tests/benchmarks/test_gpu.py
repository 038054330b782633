"""The script for GPUs runs from end to end on a CPU, and keeps what it has measured."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.report import Row


def test_whole_script_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "_WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "_WARM_UP_S", 0.2)
    arguments = "--models bundled --served bundled --modes eager graphs --batch-sizes 1 2 --clients 2 --seconds 0.1"
    output = tmp_path / "results" / "gpu.json"
    gpu.main([*arguments.split(), "--http-seconds", "0.5", "--one-start", "--output", str(output)])
    sections = {section["title"].split(":")[0]: section["rows"] for section in json.loads(output.read_text())["sections"]}
    assert list(sections) == ["Floor", "Engine", "Answers", "Decode and resize", "Service over HTTP"]
    assert all(row["met"] for row in sections["Answers"])
    assert len(sections["Engine"]) == 2 * (1 + 2)
    loads = [row for row in sections["Service over HTTP"] if "clients" in row["names"][0]]
    assert [row["errors"] for row in loads] == [0, 0]
    assert all(row["a second"] > 0 for row in loads)
    assert "### Engine: " in capsys.readouterr().out


def test_rows_survive_a_run_that_is_cut_off(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "gpu.json", "a test")
    report.add("Floor", "", Row(("first",), {"value": 1.0}, {}, None))
    report.add("Engine", "", Row(("other",), {"value": 2.0}, {}, None))
    report.add("Floor", "", Row(("second",), {"value": 3.0}, {}, None))
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert {section["title"]: [row["names"][0] for row in section["rows"]] for section in sections} == {
        "Floor": ["first", "second"],
        "Engine": ["other"],
    }

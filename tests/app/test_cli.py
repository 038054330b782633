"""The command line, in this process."""

import asyncio
import csv
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
import uvicorn
from rich.console import Console
from typer.testing import CliRunner, Result

from app.cli import cli
from app.engines import hardware
from app.process.logs import configure_logging
from app.serving import offline
from tests.support.library_models import write_swin
from tests.support.models import ROOT, TINY_LABELS, png


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    configure_logging("info", "json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them in a subfolder, and a text file."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(0))
    (folder / "deeper" / "b.png").write_bytes(png(1))
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_classify_json_is_one_object_a_line(folder: Path, tiny_checkpoint: Path) -> None:
    result = run("classify", folder, "--model", tiny_checkpoint, "--json", "--top-k", 2)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(folder / "a.png"), str(folder / "deeper" / "b.png")]
    assert all(len(row["predictions"]) == 2 for row in rows)
    assert rows[0]["predictions"][0]["probability"] >= rows[0]["predictions"][1]["probability"]


@pytest.mark.parametrize("arguments", [["--csv"], []], ids=["asked-for", "in-a-pipe"])
def test_classify_prints_csv(folder: Path, tiny_checkpoint: Path, arguments: list[str]) -> None:
    result = run("classify", folder / "a.png", "--model", tiny_checkpoint, "--top-k", 2, *arguments)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert all(row["label"] in TINY_LABELS for row in rows)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_classify_follows_the_activation(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    monkeypatch.setenv("VIT_ACTIVATION", activation)
    arguments = ("classify", folder / "a.png", "--model", tiny_checkpoint, "--top-k", 10)
    (row,) = map(json.loads, run(*arguments, "--json").stdout.splitlines())
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--csv").stdout)))
    probabilities = [prediction["probability"] for prediction in row["predictions"]]
    assert [float(line["logit"]) for line in rows] == pytest.approx([one["logit"] for one in row["predictions"]], rel=1e-5)
    if activation == "none":
        assert probabilities == [None] * 10
        assert {line["probability"] for line in rows} == {""}
    else:
        assert [float(line["probability"]) for line in rows] == pytest.approx(probabilities, abs=1e-6)
        assert (sum(probabilities) == pytest.approx(1)) == (activation == "softmax")


@pytest.mark.parametrize(("activation", "shown"), [("softmax", "%"), ("none", ".")])
def test_table_of_measurements_has_no_percent(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, activation: str, shown: str
) -> None:
    monkeypatch.setenv("VIT_ACTIVATION", activation)
    monkeypatch.setattr("app.cli.classify.out", Console(force_terminal=True, width=120))
    output = run("classify", folder / "a.png", "--model", tiny_checkpoint, "--top-k", 1).stdout
    assert shown in output
    assert ("%" in output) == (activation != "none")


def test_classify_continues_after_a_bad_image(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    result = run("classify", folder, "--model", tiny_checkpoint, "--json")
    assert result.exit_code == 1
    errors = {Path(row["path"]).name: row.get("error") for row in map(json.loads, result.stdout.splitlines())}
    assert errors == {"a.png": None, "broken.jpg": "The image is truncated or corrupt.", "b.png": None}


def test_classify_more_images_than_in_flight(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_MAX_BATCH_SIZE", "2")
    monkeypatch.setenv("VIT_MAX_INFLIGHT_IMAGES", "1")
    for seed in range(20):
        (tmp_path / f"{seed:02}.png").write_bytes(png(seed))
    result = run("classify", tmp_path, "--model", tiny_checkpoint, "--json", "--top-k", 1)
    assert result.exit_code == 0
    assert [Path(json.loads(line)["path"]).stem for line in result.stdout.splitlines()] == [f"{i:02}" for i in range(20)]


def test_terminal_table_escapes_markup(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.classify.out", Console(force_terminal=True, width=200))
    (tmp_path / "[bold]a.png").write_bytes(png(0))
    (tmp_path / "[").mkdir()
    (tmp_path / "[" / "b].png").write_bytes(b"broken")
    result = run("classify", tmp_path, "--model", tiny_checkpoint, "--top-k", 2)
    assert "[bold]a.png" in result.stdout
    assert "[/b].png" in result.stdout
    assert "send one of" in result.stdout
    assert "probability" in result.stdout


def test_folder_without_images_is_an_error(tmp_path: Path, tiny_checkpoint: Path) -> None:
    result = run("classify", tmp_path, "--model", tiny_checkpoint)
    assert (result.exit_code, result.stderr) == (1, "vit-serve: there are no images in these folders\n")


def test_info_describes_a_checkpoint(tiny_checkpoint: Path) -> None:
    facts = json.loads(run("info", tiny_checkpoint, "--json").stdout)
    assert (facts["name"], facts["parameters"], facts["image_size"]) == ("tiny-dinov2", 31_562, 28)
    assert facts["labels"] == list(TINY_LABELS)
    assert (facts["tokens"], facts["servable"]) == (17, True)
    shown = run("info", tiny_checkpoint).stdout
    assert "tiny-dinov2" in shown
    assert "GFLOP an image" in shown


@pytest.mark.parametrize(("has", "told"), [(True, "VIT_DTYPE=bfloat16 is about 1.7 times as fast here"), (False, None)])
def test_info_says_what_is_faster(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, has: bool, told: str | None) -> None:
    monkeypatch.setenv("VIT_ENGINE", "auto")
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"} if has else ()))
    assert json.loads(run("info", tiny_checkpoint, "--json").stdout)["faster"] == told
    assert ("faster" in run("info", tiny_checkpoint).stdout) == has


def test_info_says_which_library_serves(tmp_path: Path) -> None:
    shown = json.loads(run("info", write_swin(tmp_path), "--json").stdout)
    assert (shown["served_by"], shown["image_size"]) == (f"transformers {transformers.__version__}", 32)
    assert shown["features"] == {"pooled": 16}
    assert not {"patch_size", "tokens", "flops"} & set(shown)


def test_wrong_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"vit-serve: VIT_MODEL: {tmp_path}/config.json is missing\n"


def write_labelled(path: Path, labels: tuple[str, ...], images: list[bytes]) -> Path:
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": list(range(len(images)))})
    features = {"info": {"features": {"label": {"names": labels}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return path


def test_evaluate_agrees_with_classify(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "picture.png").write_bytes(png(0))
    answered = json.loads(run("classify", tmp_path, "--model", tiny_checkpoint, "--json").stdout)["predictions"][0]
    images = [png(0)] * 10  # one for each label, of which only one can be right
    data = write_labelled(tmp_path / "test.parquet", TINY_LABELS, images)
    report = json.loads(run("evaluate", data, "--model", tiny_checkpoint, "--json").stdout)
    assert (report["images"], report["top1"], report["top5"]) == (10, 0.1, 0.5)
    assert {name for name, share in report["per_class"].items() if share} == {answered["label"]}
    shown = run("evaluate", data, "--model", tiny_checkpoint).stdout
    assert "top-1 10.0%" in shown
    assert f"{answered['label']}" in shown


def test_evaluate_refuses_other_labels(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write_labelled(tmp_path / "test.parquet", ("cat", "dog"), [png(0), png(1)])
    result = run("evaluate", data, "--model", tiny_checkpoint)
    assert result.exit_code == 1
    assert "are not those of the model" in result.stderr


def test_trained_checkpoint_is_servable(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "one.png").write_bytes(png(len(name)))
    output = tmp_path / "mine"
    result = run("train", tmp_path / "data", output, "--start", tiny_checkpoint, "--epochs", 1, "--image-size", 28)
    assert result.exit_code == 0, result.output
    facts = json.loads(run("info", output, "--json").stdout)
    assert (facts["labels"], facts["image_size"]) == (["cat", "dog"], 28)


def test_pipe_in_a_folder_is_skipped(folder: Path, tiny_checkpoint: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    result = run("classify", folder, "--model", tiny_checkpoint, "--json")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)


@pytest.fixture
def training_data(tmp_path: Path) -> Path:
    """Two classes with one image each, and files that systems leave in folders."""
    data = tmp_path / "data"
    for name in ("cat", "dog", ".git", "__MACOSX", ".ipynb_checkpoints"):
        (data / name).mkdir(parents=True)
        (data / name / "one.png").write_bytes(png(len(name)))
    for name in ("._one.png", ".hidden.png"):
        (data / "cat" / name).write_bytes(b"not an image")
    (data / "cat" / "__MACOSX").mkdir()
    (data / "cat" / "__MACOSX" / "one.png").write_bytes(b"not an image")
    os.mkfifo(data / "cat" / "pipe.png")
    return data


def train(data: Path, output: Path, start: Path, *options: object) -> Result:
    return run("train", data, output, "--start", start, "--epochs", 1, "--image-size", 28, *options)


def test_hidden_files_are_skipped(training_data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    result = train(training_data, tmp_path / "mine", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert json.loads(run("info", tmp_path / "mine", "--json").stdout)["labels"] == ["cat", "dog"]
    rows = run("classify", training_data, "--model", tiny_checkpoint, "--json").stdout.splitlines()
    assert [json.loads(row)["path"] for row in rows] == [str(training_data / name / "one.png") for name in ("cat", "dog")]


def test_bad_image_stops_training_early(training_data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    bad = training_data / "dog" / "two.png"
    bad.write_bytes(png(7)[:500])
    result = train(training_data, tmp_path / "mine", tiny_checkpoint)
    reason = f"{bad} cannot be decoded: The image is truncated or corrupt; --skip-bad leaves out such images"
    assert (result.exit_code, result.stderr) == (1, f"vit-serve: {reason}\n")
    assert not (tmp_path / "mine").exists()


def test_skip_bad_leaves_out_bad_images(training_data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (training_data / "dog" / "two.png").write_bytes(png(7)[:500])
    (training_data / "dog" / "three.jpg").write_bytes(b"")
    result = train(training_data, tmp_path / "mine", tiny_checkpoint, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "leaving out 2 of 4 images" in result.stderr


def test_class_without_images_is_a_warning(training_data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (training_data / "empty").mkdir()
    (training_data / "dog" / "one.png").write_bytes(b"")
    result = train(training_data, tmp_path / "mine", tiny_checkpoint, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "no images of dog, empty: the model will never predict that" in result.stderr


def test_missing_decoder_stops_training(
    training_data: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_IMAGE_FORMATS", "jpeg,png,heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    result = train(training_data, tmp_path / "mine", tiny_checkpoint, "--skip-bad")
    assert result.exit_code == 1
    assert "pip install 'vit-serve[heif]'" in result.stderr


def test_only_bad_images_stops_training(training_data: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name in ("cat", "dog"):
        (training_data / name / "one.png").write_bytes(b"")
    result = train(training_data, tmp_path / "mine", tiny_checkpoint, "--skip-bad")
    assert (result.exit_code, result.stderr) == (1, "vit-serve: none of the images can be decoded\n")


def test_evaluate_names_the_bad_image(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for label in TINY_LABELS:
        (tmp_path / label).mkdir()
        (tmp_path / label / "one.png").write_bytes(png(1))
    bad = tmp_path / TINY_LABELS[3] / "bad.png"
    bad.write_bytes(png(1)[:500])
    result = run("evaluate", tmp_path, "--model", tiny_checkpoint)
    assert result.exit_code == 1
    assert f"{bad} cannot be classified: The image is truncated" in result.stderr


NOT_UTF8 = b"caf\xe9.png"


COMMAND = Path(sys.executable).parent / "vit-serve"


def started(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_paths_in_any_encoding_survive(folder: Path, tiny_checkpoint: Path, form: str) -> None:
    path = os.fsencode(folder) + b"/" + NOT_UTF8
    with open(path, "wb") as file:
        file.write(png(3))
    with started("classify", folder, "--model", tiny_checkpoint, form, "--top-k", 1) as process:
        output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    paths = [os.fsencode(json.loads(line)["path"]) if form == "--json" else line.partition(b",")[0] for line in lines]
    assert path in paths


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_interrupted_classify_prints_results(folder: Path, tiny_checkpoint: Path, form: str) -> None:
    os.mkfifo(folder / "waits")  # blocks its reader
    arguments = ("classify", folder, folder / "waits", "--model", tiny_checkpoint, form, "--top-k", 1)
    with started(*arguments) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3 if form == "--csv" else 2)]
        assert b"b.png" in lines[-1]
        process.send_signal(signal.SIGTERM)  # SIGINT is ignored where a shell runs tests in the background
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (130, b"")
    assert b"interrupted after 2 images, whose results are printed" in errors


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: the screen, and the file that programs print to."""
    screen, file = pty.openpty()
    yield screen, file
    os.close(screen)
    os.close(file)


def shown(screen: int, text: str) -> str:
    """Wait for a text on the screen, and return all that is shown until then."""
    output = ""
    while text not in output:
        assert select.select([screen], [], [], 60)[0], output
        output += os.read(screen, 10_000).decode(errors="replace")
    return output


def test_file_gets_rows_beside_a_progress_bar(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    screen, file = terminal
    with (tmp_path / "rows.csv").open("wb") as rows:
        subprocess.run([COMMAND, "classify", ".", "--model", tiny_checkpoint], stdout=rows, stderr=file, cwd=folder, check=True)
    shown(screen, "classifying")
    with (tmp_path / "rows.csv").open() as written:
        assert [row["path"] for row in csv.DictReader(written) if row["rank"] == "1"] == ["a.png", "deeper/b.png"]


def test_terminal_gets_rows_as_they_come(folder: Path, tiny_checkpoint: Path, terminal: tuple[int, int]) -> None:
    os.mkfifo(folder / "waits")
    screen, file = terminal
    with subprocess.Popen(
        [COMMAND, "classify", ".", "waits", "--model", tiny_checkpoint], stdout=file, stderr=file, cwd=folder
    ) as process:
        output = shown(screen, "deeper/b.png")
        process.send_signal(signal.SIGTERM)
        shown(screen, "interrupted after 2 images")
    assert process.returncode == 130
    assert output.count("probability, or value") == 1


def test_classify_ends_on_a_closed_pipe(folder: Path, tiny_checkpoint: Path) -> None:
    for number in range(300):
        (folder / f"{number}.png").symlink_to(folder / "a.png")
    with started("classify", folder, "--model", tiny_checkpoint, "--json", "--top-k", 10) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert b"the reader of the output has gone" in errors
    assert b"Traceback" not in errors


def test_help_does_not_import_torch() -> None:
    code = "import sys; from app.cli import cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert "serve" in run("--help").stdout


def test_commands_use_the_service_event_loop() -> None:
    async def kind() -> type:
        return type(asyncio.get_running_loop())

    make_loop = uvicorn.Config("app").get_loop_factory()
    assert make_loop is not None
    loop = make_loop()
    loop.close()
    assert offline.run(kind()) is type(loop)


async def test_async_tests_use_the_service_event_loop() -> None:
    assert asyncio.get_running_loop().__class__.__module__ == "uvloop"

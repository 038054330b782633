"""The command line: `vit-serve serve | classify | info | train | evaluate`."""

import csv
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app import __version__
from app.errors import ServiceError, StartError
from app.logs import configure_logging
from app.settings import BUNDLED_MODEL, Settings, read_settings, unknown_variables
from app.signals import STOP, handled
from app.starting import BUG, check_memory, explain, watched_start
from app.stderr import finish_stderr, queue_stderr

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

_CONCURRENCY = 128
"""Pictures that commands have under way at once: more than any device runs and stages."""

_log = structlog.get_logger(__name__)
_out = Console()
_err = Console(stderr=True)

_WHICH = "Directory, file or hub id. Default: VIT_MODEL, or the bundled weights."

Model = Annotated[
    str | None,
    typer.Option("--model", help=_WHICH),
]
TopK = Annotated[int, typer.Option(min=1, help="How many classes to show.")]


def main() -> None:
    queue_stderr()
    cli()


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        _out.print(__version__)
        raise typer.Exit


@cli.command()
def serve(
    model: Model = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: VIT_HOST, or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: VIT_PORT, or 8000.")] = None,
) -> None:
    """Serve a model over HTTP. Everything else is set by VIT_* variables; see the README."""
    # until the server takes over: the first process of a container ignores signals that it has no handler for
    with handled(STOP, lambda *_: sys.exit(0)), _explained():
        settings = _settings(model=model, host=host, port=port)
        from app.server import serve as run_server  # torch takes seconds to import; --help should not

        end(run_server(settings))


@cli.command()
def classify(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", exists=True)],
    model: Model = None,
    top_k: TopK = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV; also what a pipe gets.")] = False,
) -> None:
    """Classify pictures in this process, with no server. Exits with 1 if one of them could not be classified."""
    files = list(_pictures(paths))
    if not files:
        _fail("there are no pictures in these folders")
    from app.offline import run

    with _explained():
        rows = run(_classify(_offline_settings(model), files, top_k))
    if as_json:
        _print_json(rows)
    elif as_csv or not _out.is_terminal:
        _print_csv(rows, top_k)
    else:
        _print_table(rows)
    raise typer.Exit(any("error" in row for row in rows))


@cli.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Directory, file or hub id. Default: VIT_MODEL, or the bundled weights.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint is, and whether it can be served."""
    with _explained():
        facts = _describe(_settings("warning", model=model))
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), Text(_readable(name, value)))
    _out.print(table)


@cli.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="A folder of class folders, or parquet in Hugging Face's layout.", exists=True)],
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a checkpoint's accuracy on labelled pictures, decoded as the service decodes them."""
    from app.offline import run

    with _explained():
        report = run(_evaluate(_offline_settings(model), data))
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    _out.print(f"{report['images']} pictures: top-1 {report['top1']:.1%}, top-5 {report['top5']:.1%}", highlight=False)
    confusions = Table("picture of", "most often taken for", "times", box=None)
    for confusion in report["confusions"][:10]:
        confusions.add_row(Text(confusion["truth"]), Text(confusion["prediction"]), str(confusion["count"]))
    classes = Table("class, the weakest first", "top-1", box=None)
    for label, share in sorted(report["per_class"].items(), key=lambda item: item[1]):
        classes.add_row(Text(label), f"{share:.0%}")
    _out.print(confusions, classes, sep="\n\n")


@cli.command()
def train(
    data: Annotated[Path, typer.Argument(help="A folder of class folders, or parquet in Hugging Face's layout.", exists=True)],
    output: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to; an interrupted run in it goes on.")],
    start: Annotated[Path, typer.Option(help="Directory of the checkpoint whose encoder is fine-tuned.")] = BUNDLED_MODEL,
    epochs: Annotated[float, typer.Option(min=0.0, max=10_000.0, help="How often every picture is seen.")] = 2.0,
    image_size: Annotated[int, typer.Option(min=14, max=4096, help="Side of the model's input, in pixels.")] = 84,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536)] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Peak, for the head.")] = 4e-4,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that decode pictures.")] = 0,
) -> None:
    """Fine-tune a checkpoint's encoder on labelled pictures."""
    with _explained("training"):
        from model.checkpoint import CheckpointError
        from model.dataset import DatasetError, load_labelled_images
        from model.train import TrainError, TrainSettings, training_preprocessing
        from model.train import train as run_training

        settings = TrainSettings(
            epochs=epochs, image_size=image_size, batch_size=batch_size, learning_rate=learning_rate, workers=workers
        )
        try:
            run_training(start, load_labelled_images(data), output, training_preprocessing(image_size), settings)
        except (CheckpointError, DatasetError, TrainError) as error:
            raise StartError(str(error)) from error
    _out.print(f"wrote {output}; measure it with: vit-serve evaluate DATA --model {output}", highlight=False)


def end(status: int) -> NoReturn:
    """End the process now: a thread that is loading a model, or hangs in a device, cannot be waited for."""
    for sig in STOP:
        signal.signal(sig, signal.SIG_IGN)  # the status is known, and the rest takes no longer than the log's last lines
    finish_stderr()
    os._exit(status)


def _settings(log_level: str | None = None, **overrides: Any) -> Settings:
    """Read the settings, and begin to log."""
    settings = read_settings(**overrides)
    configure_logging(log_level or settings.log_level, settings.log_format)
    for warning in unknown_variables(os.environ):
        _log.warning(warning)
    return settings


def _offline_settings(model: str | None) -> Settings:
    settings = _settings("warning", model=model)
    # nobody waits in line here: as many images are under way as this process starts itself
    # the pictures are the user's own: threads are there at once, and nobody else is harmed by what crashes them
    return settings.model_copy(update={"max_queue_size": _CONCURRENCY, "decode_isolation": "thread"})


async def _classify(settings: Settings, files: list[Path], top_k: int) -> list[dict[str, Any]]:
    from app.offline import classify_all, running_classifier

    rows: list[dict[str, Any]] = []
    async with running_classifier(settings) as classifier:
        images = ((file, partial(file.read_bytes)) for file in files)
        with _progress("classifying", len(files)) as advance:
            async for file, outcome in classify_all(classifier, images, _CONCURRENCY):
                if isinstance(outcome, ServiceError | OSError):
                    rows.append({"path": str(file), "error": str(outcome)})
                else:
                    rows.append({"path": str(file), "predictions": [asdict(prediction) for prediction in outcome.top(top_k)]})
                advance()
    return rows


def _describe(settings: Settings) -> dict[str, Any]:
    from app.lifecycle import load

    with watched_start() as on_step:
        checkpoint = load(settings, on_step)
    config = checkpoint.model.config
    return {
        "name": checkpoint.name,
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "tokens": config.num_tokens,
        "flops": config.flops,
        "preprocessing": checkpoint.preprocessing.describe(),
        "labels": list(checkpoint.labels),
        "labels_source": checkpoint.labels_source,
        "activation": checkpoint.activation,
        "servable": True,  # what is not ends in an error that says why
    }


def _readable(name: str, value: Any) -> str:
    match name, value:
        case "flops", int():
            return f"{value / 1e9:.2f} GFLOP an image"
        case "parameters", int():
            return f"{value / 1e6:.1f} million"
        case "labels", list():
            return f"{len(value)}: {'; '.join(value[:100])}{'; ...' if len(value) > 100 else ''}"
        case _, bool():
            return "yes" if value else "no"
    return str(value)


async def _evaluate(settings: Settings, data: Path) -> dict[str, Any]:
    import numpy as np

    from app.offline import classify_all, running_classifier
    from model.dataset import DatasetError, load_labelled_images
    from model.evaluate import evaluate as compare

    try:
        pictures = load_labelled_images(data)
    except DatasetError as error:
        raise StartError(str(error)) from error
    async with running_classifier(settings) as classifier:
        if classifier.labels != pictures.labels:
            raise StartError(f"the labels of {data} are not those of the model, in the same order")
        images = ((index, partial(_read, pictures, index)) for index in range(len(pictures)))
        logits = []
        with _progress("evaluating", len(pictures)) as advance:
            async for index, outcome in classify_all(classifier, images, _CONCURRENCY):
                if isinstance(outcome, ServiceError | OSError):
                    raise StartError(f"picture {index} of {data} cannot be classified: {outcome}")
                logits.append(outcome.logits)
                advance()
    return asdict(compare(np.stack(logits), pictures.targets, pictures.labels))


def _read(pictures: Any, index: int) -> bytes:
    image_bytes: bytes = pictures.read(index)[0]
    return image_bytes


def _pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are given; of folders all pictures below them, in order."""
    from model.dataset import IMAGE_SUFFIXES

    for path in paths:
        if path.is_dir():
            # a pipe with the name of a picture would be waited for
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        else:
            yield path


def _print_json(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")


def _print_csv(rows: list[dict[str, Any]], top_k: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability", "logit", "error"])
    for row in rows:
        if "error" in row:
            writer.writerow([row["path"], "", "", "", "", row["error"]])
        for rank, prediction in enumerate(row.get("predictions", []), start=1):
            share = "" if prediction["probability"] is None else f"{prediction['probability']:.6f}"
            writer.writerow([row["path"], rank, prediction["label"], share, f"{prediction['logit']:.6g}", ""])


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("picture", "label", "probability, or value")
    for row in rows:
        path = Text(row["path"])  # names of files and labels are no markup
        if "error" in row:
            table.add_row(path, Text(row["error"], style="red"), "")
        for rank, prediction in enumerate(row.get("predictions", [])):
            style = "bold" if rank == 0 else "dim"
            label, share = prediction["label"], prediction["probability"]
            value = f"{prediction['logit']:.6g}" if share is None else f"{share:.1%}"
            table.add_row(path if rank == 0 else "", Text(label, style=style), Text(value, style=style))
    _out.print(table)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """A bar on standard error; gives the function that moves it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield partial(progress.advance, task)


@contextmanager
def _explained(doing: str = "starting") -> Iterator[None]:
    """One sentence instead of a stack trace for what whoever calls can mend; for a bug, a sentence that says so before it."""
    try:
        check_memory()
        yield
    except Exception as error:
        sentence = error if isinstance(error, StartError) else explain(error, doing)
        if sentence is None:
            _say(BUG)
            raise
        if os.environ.get("VIT_LOG_LEVEL") == "debug":
            raise
        _fail(str(sentence))


def _fail(message: str) -> None:
    _say(message)
    raise typer.Exit(1)


def _say(message: str) -> None:
    # without rich, which imports more as it prints: there may be no memory left
    typer.secho(f"vit-serve: {message}", err=True, fg=typer.colors.RED)

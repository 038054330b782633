"""The command line: `vit-serve serve | classify | info | train | evaluate`."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app import __version__
from app.cli.rows import CsvRows, JsonRows, Row, Rows, TableRows, printable
from app.errors import ServiceError, StartError
from app.process.cpu import available_cpus
from app.process.logs import configure_logging
from app.process.signals import STOP, handled
from app.process.startup import BUG, check_memory, explain, watched_start
from app.process.stderr import finish_stderr, queue_stderr
from app.settings import BUNDLED_MODEL, Settings, read_settings, unknown_variables

if TYPE_CHECKING:  # their imports take seconds
    from model.training.dataset import Decode, LabelledImages

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
    from app.serving.offline import run

    rows: Rows = JsonRows() if as_json else CsvRows() if as_csv or not _out.is_terminal else TableRows(_out)
    with _explained(), _interruptible(rows) as written:
        failed = run(_classify(_offline_settings(model), files, top_k, written))
    raise typer.Exit(failed > 0)


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
    from app.serving.offline import run

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
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without pictures that cannot be decoded.")] = False,
) -> None:
    """Fine-tune a checkpoint's encoder on labelled pictures, decoded as the service decodes them."""
    with _explained("training"):
        from app.decoding.formats import check_decoders
        from app.decoding.pool.select import image_decoder
        from model.checkpoints.checkpoint import CheckpointError
        from model.training.dataset import DatasetError, load_labelled_images
        from model.training.train import TrainError, TrainSettings, training_preprocessing
        from model.training.train import train as run_training

        recipe = TrainSettings(
            epochs=epochs, image_size=image_size, batch_size=batch_size, learning_rate=learning_rate, workers=workers
        )
        settings, preprocessing = _settings("warning"), training_preprocessing(image_size)
        check_decoders(settings.image_formats)
        decode = image_decoder(settings, preprocessing).decode_whole
        try:
            images = _without_bad(load_labelled_images(data), decode, skip=skip_bad)
            run_training(start, images, decode, output, preprocessing, recipe)
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
    return settings.model_copy(update={"max_inflight_images": _CONCURRENCY, "decode_isolation": "thread"})


async def _classify(settings: Settings, files: list[Path], top_k: int, write: Callable[[Row], None]) -> int:
    """Write a row for each file as soon as it and all before it are done. Returns how many could not be classified."""
    from app.serving.offline import classify_all, running_classifier

    failed = 0
    async with running_classifier(settings) as classifier:
        images = ((file, partial(file.read_bytes)) for file in files)
        with _progress("classifying", len(files)) as advance:
            async for file, outcome in classify_all(classifier, images, _CONCURRENCY):
                if isinstance(outcome, ServiceError | OSError):
                    write({"path": str(file), "error": str(outcome)})
                    failed += 1
                else:
                    write({"path": str(file), "predictions": [asdict(prediction) for prediction in outcome.top(top_k)]})
                advance()
    return failed


@contextmanager
def _interruptible(rows: Rows) -> Iterator[Callable[[Row], None]]:
    """Give what writes rows, and close them however it ends: what is done is shown, and a sentence says how much that is."""
    written = 0

    def write(row: Row) -> None:
        nonlocal written
        written += 1  # before whoever reads can know of it
        rows.write(row)

    def interrupt(*_: object) -> None:
        rows.close()
        _say(f"interrupted; what was done of it is printed: {written} pictures")
        end(130)  # a thread that reads from a slow disk cannot be waited for

    try:
        with handled(STOP, interrupt):
            yield write
        rows.close()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it ends
        _say(f"nobody reads the output any more; {written} pictures were printed")
        raise typer.Exit(1) from None


def _describe(settings: Settings) -> dict[str, Any]:
    from app.serving.loading import load

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


def _without_bad(images: "LabelledImages", decode: "Decode", *, skip: bool) -> "LabelledImages":
    """Decode all pictures once, before hours are spent on them.

    Raises:
        StartError: one of them cannot be decoded, and is not to be skipped.
    """
    from model.training.dataset import find_bad_pictures

    good = []
    with _progress("checking pictures", len(images)) as advance:
        for index, fault in find_bad_pictures(images, decode, available_cpus()):
            if fault is None:
                good.append(index)
            elif not skip:
                sentence = f"{printable(images.name(index))} cannot be decoded: {fault.rstrip('.')}"
                raise StartError(f"{sentence}; --skip-bad goes on without such pictures")
            advance()
    if not good:
        raise StartError("none of the pictures can be decoded")
    if len(good) < len(images):
        _say(f"going on without {len(images) - len(good)} of {len(images)} pictures, which cannot be decoded")
    chosen = images.only(good)
    if empty := [label for index, label in enumerate(chosen.labels) if index not in set(chosen.targets)]:
        _say(f"no pictures of {', '.join(map(printable, empty))}: the model will never answer that")
    return chosen


async def _evaluate(settings: Settings, data: Path) -> dict[str, Any]:
    import numpy as np

    from app.serving.offline import classify_all, running_classifier
    from model.training.dataset import DatasetError, load_labelled_images
    from model.training.evaluate import evaluate as compare

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
                    raise StartError(f"{printable(pictures.name(index))} cannot be classified: {outcome}")
                logits.append(outcome.logits)
                advance()
    return asdict(compare(np.stack(logits), pictures.targets, pictures.labels))


def _read(pictures: Any, index: int) -> bytes:
    image_bytes: bytes = pictures.read(index)[0]
    return image_bytes


def _pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are given, and of folders all pictures below them, in order."""
    from model.training.dataset import pictures_in

    for path in paths:
        if path.is_dir():
            yield from pictures_in(path)
        else:
            yield path


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """Show a bar on standard error, where that is a terminal; gives the function that moves it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
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

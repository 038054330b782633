"""The command `classify`."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import IMAGES_IN_FLIGHT, Model, configure_offline
from app.cli.output import err, explained_errors, fail, out, print_json, progress, say
from app.cli.rows import CsvRows, Row, TableRows, Write
from app.errors import ServiceError
from app.process.exit import end_process
from app.process.signals import STOP, handled
from app.settings import Settings


def classify(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", exists=True)],
    model: Model = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, as into a pipe or a file.")] = False,
) -> None:
    """Classify images in this process, without a server. Exits with 1 if one of them cannot be classified."""
    files = list(image_files(paths))
    if not files:
        fail("there are no images in these folders")
    from app.serving.offline import run

    rows = print_json if as_json else CsvRows().write if as_csv or not out.is_terminal else TableRows(out).write
    with explained_errors(), _interruptible(rows) as write:
        failed = run(_classify(configure_offline(model), files, top_k, write))
    raise typer.Exit(failed > 0)


async def _classify(settings: Settings, files: list[Path], top_k: int, write: Write) -> int:
    """Write a row for each file, in order, as soon as it is classified. Returns the number of failures."""
    from app.serving.offline import infer_all, running_classifier

    failed = 0
    async with running_classifier(settings) as classifier:
        images = ((file, file.read_bytes) for file in files)
        with progress("classifying", len(files)) as advance:
            async for file, outcome in infer_all(classifier.classify, images, IMAGES_IN_FLIGHT):
                if isinstance(outcome, ServiceError | OSError):
                    write({"path": str(file), "error": str(outcome)})
                    failed += 1
                else:
                    write({"path": str(file), "predictions": [asdict(prediction) for prediction in outcome.top(top_k)]})
                advance()
    return failed


@contextmanager
def _interruptible(write: Write) -> Iterator[Write]:
    """Give a function that writes and counts rows; an interrupt or a closed pipe ends the command with their number."""
    written = 0

    def write_counted(row: Row) -> None:
        nonlocal written
        written += 1  # before the row can be read
        write(row)

    def interrupt(*_: object) -> None:
        for console in (out, err):
            console.show_cursor()  # which a progress bar hides
        say(f"interrupted after {written} images, whose results are printed")
        end_process(130)  # without joining a thread that reads from a slow disk

    try:
        with handled(STOP, interrupt):
            yield write_counted
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it exits
        say(f"the reader of the output has gone; {written} images were printed")
        raise typer.Exit(1) from None


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are given, and all images below folders, in order."""
    from model.training.dataset import find_images

    for path in paths:
        if path.is_dir():
            yield from find_images(path)
        else:
            yield path

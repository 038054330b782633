"""Output of all commands: messages, progress bars, and errors in one sentence."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.errors import StartError
from app.process.startup import BUG, check_memory, explain

out = Console()
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print a line of JSON. Bytes of a path that are not UTF-8 are lone surrogates, which `os.fsencode` makes bytes again."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def say(message: str) -> None:
    # without rich, whose printing imports more: there may be no memory left
    typer.secho(f"vit-serve: {message}", err=True, fg=typer.colors.RED)


def fail(message: str) -> NoReturn:
    say(message)
    raise typer.Exit(1)


@contextmanager
def progress(action: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; gives the function that advances it by one."""
    # rich keeps a bar below the rows that are printed to the same terminal; a redirected stream must stay as it is
    console = out if out.is_terminal else err
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=out.is_terminal,
        redirect_stderr=err.is_terminal,
    ) as bar:
        yield partial(bar.advance, bar.add_task(action, total=total))


@contextmanager
def explained_errors(action: str = "starting") -> Iterator[None]:
    """End the command with one sentence for an error that the user can fix; announce any other as a bug."""
    try:
        check_memory()
        yield
    except Exception as error:
        sentence = error if isinstance(error, StartError) else explain(error, action)
        if sentence is None:
            say(BUG)
            raise
        if os.environ.get("VIT_LOG_LEVEL") == "debug":
            raise
        fail(str(sentence))

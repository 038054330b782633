"""The command line: `vit-serve serve | reload | classify | embed | info | train | evaluate | bench`."""

from typing import Annotated

import typer

from app import __version__
from app.cli import bench, classify, embed, evaluate, info, reload, serve, train
from app.cli.output import out
from app.process.stderr import queue_stderr

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

cli.command()(serve.serve)
cli.command()(reload.reload)
cli.command()(classify.classify)
cli.command()(embed.embed)
cli.command()(info.info)
cli.command()(train.train)
cli.command()(evaluate.evaluate)
cli.command(cls=bench.SeveralNumbers)(bench.bench)


def main() -> None:
    queue_stderr()
    cli()


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit

"""The command `serve`."""

import os
import sys
from typing import Annotated

import typer

from app.cli.options import Model, configure
from app.cli.output import explained_errors
from app.process.exit import end_process
from app.process.signals import STOP, handled
from app.tracing.start import check_propagators


def serve(
    model: Model = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: VIT_HOST, or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: VIT_PORT, or 8000.")] = None,
) -> None:
    """Serve a model over HTTP. VIT_* variables set everything else; docs/settings.md lists them."""
    # until the server handles signals itself: the first process of a container ignores those without a handler
    with handled(STOP, lambda *_: sys.exit(0)), explained_errors():
        settings = configure(model=model, host=host, port=port)
        check_propagators(os.environ)
        from app.server import serve as run_server  # importing torch takes seconds, which --help should not

        end_process(run_server(settings))

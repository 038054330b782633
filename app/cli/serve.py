"""The command `serve`."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import Model, configure
from app.cli.output import explained_errors
from app.process.exit import end_process
from app.process.signals import STOP, handled
from app.settings import Settings
from app.tracing.start import check_propagators

if TYPE_CHECKING:  # not for --help
    from app.decoding.pool.zygote import Zygote


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
        zygote = _start_zygote(settings)
        from app.server import serve as run_server  # half a second, which --help should not take

        end_process(run_server(settings, zygote=zygote))


def _start_zygote(settings: Settings) -> "Zygote | None":
    """Start the process that decoders are forked from, which imports what they need while this one imports the server."""
    from app.decoding.pool.zygote import Zygote, can_fork_workers

    if settings.decode_isolation == "thread" or not can_fork_workers():
        return None
    try:
        return Zygote()
    except OSError:  # the server tries again, and says what fails
        return None

"""Options and settings that commands share."""

import os
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from app.process.logs import configure_logging
from app.settings import Settings, read_settings, unknown_variables

IMAGES_IN_FLIGHT = 128
"""Images that offline commands work on at once: enough for every device."""

_MODEL_HELP = "Directory, file or hub id. Default: VIT_MODEL, or the bundled weights."

Model = Annotated[str | None, typer.Option("--model", help=_MODEL_HELP)]
ModelArgument = Annotated[str | None, typer.Argument(help=_MODEL_HELP)]
Data = Annotated[Path, typer.Argument(help="A folder of class folders, or parquet in Hugging Face's layout.", exists=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_log = structlog.get_logger(__name__)


def configure(log_level: str | None = None, **overrides: Any) -> Settings:
    """Read the settings, configure logging, and warn of unknown variables."""
    settings = read_settings(**overrides)
    configure_logging(log_level or settings.log_level, settings.log_format)
    for warning in unknown_variables(os.environ):
        _log.warning(warning)
    return settings


def configure_offline(model: str | None) -> Settings:
    """Configure a command that works on the user's own images: threads decode them, since these start at once."""
    settings = configure("warning", model=model)
    return settings.model_copy(update={"max_inflight_images": IMAGES_IN_FLIGHT, "decode_isolation": "thread"})

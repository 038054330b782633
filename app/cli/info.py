"""The command `info`."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from app.cli.options import AsJson, ModelArgument, configure
from app.cli.output import explained_errors, out, print_json
from app.process.startup import watched_start
from app.settings import Settings

if TYPE_CHECKING:  # importing it takes a second
    from model.checkpoints.checkpoint import Checkpoint


def info(model: ModelArgument = None, as_json: AsJson = False) -> None:
    """Show what a checkpoint is, and whether it can be served."""
    with explained_errors():
        facts = _describe(configure("warning", model=model))
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value is None:
            continue
        table.add_row(name.replace("_", " "), Text(_readable(name, value)))
    out.print(table)


def _describe(settings: Settings) -> dict[str, Any]:
    from app.engines.select import faster_dtype
    from app.serving.engine_loading import engine_options, load

    with watched_start() as on_step:
        checkpoint = load(settings, on_step)
    config = checkpoint.model.config
    return {
        "name": checkpoint.name,
        "architecture": checkpoint.architecture,
        "served_by": checkpoint.served_by,
        "parameters": checkpoint.parameters,
        "image_size": config.image_size,
        **_sizes_of_own(checkpoint),
        "preprocessing": checkpoint.preprocessing.describe(),
        "features": dict(checkpoint.features),
        "output": f"{config.output_dim} {'logits' if checkpoint.labels else 'features, and no classes'}",
        "labels": list(checkpoint.labels),
        "labels_source": checkpoint.labels_source,
        "activation": checkpoint.activation,
        "faster": faster_dtype(checkpoint.served_by, engine_options(settings)),
        "servable": True,  # any other checkpoint ends in an error with the reason
    }


def _sizes_of_own(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return what is known of the service's own models alone."""
    from model.vit import VisionTransformer

    if not isinstance(checkpoint.model, VisionTransformer):
        return {}
    config = checkpoint.model.config
    return {"patch_size": config.patch_size, "tokens": config.num_tokens, "flops": config.flops}


def _readable(name: str, value: Any) -> str:
    match name, value:
        case "flops", int():
            return f"{value / 1e9:.2f} GFLOP an image"
        case "parameters", int():
            return f"{value / 1e6:.1f} million"
        case "labels", []:
            return "none: an encoder without a classifier"
        case "labels", list():
            return f"{len(value)}: {'; '.join(value[:100])}{'; ...' if len(value) > 100 else ''}"
        case _, bool():
            return "yes" if value else "no"
    return str(value)

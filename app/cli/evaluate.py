"""The command `evaluate`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from app.cli.options import IMAGES_IN_FLIGHT, AsJson, Data, Model, configure_offline
from app.cli.output import explained_errors, out, print_json, progress
from app.cli.rows import printable
from app.errors import ServiceError, StartError
from app.settings import Settings

if TYPE_CHECKING:  # importing it takes a second
    from model.training.dataset import LabelledImages


def evaluate(data: Data, model: Model = None, as_json: AsJson = False) -> None:
    """Measure a checkpoint's accuracy on labelled images, decoded as the service decodes them."""
    from app.serving.offline import run

    with explained_errors():
        report = run(_evaluate(configure_offline(model), data))
    if as_json:
        print_json(report)
        return
    out.print(f"{report['images']} images: top-1 {report['top1']:.1%}, top-5 {report['top5']:.1%}", highlight=False)
    confusions = Table("image of", "most often taken for", "times", box=None)
    for confusion in report["confusions"][:10]:
        confusions.add_row(Text(confusion["truth"]), Text(confusion["prediction"]), str(confusion["count"]))
    classes = Table("class, the weakest first", "top-1", box=None)
    for label, accuracy in sorted(report["per_class"].items(), key=lambda item: item[1]):
        classes.add_row(Text(label), f"{accuracy:.0%}")
    out.print(confusions, classes, sep="\n\n")


async def _evaluate(settings: Settings, data: Path) -> dict[str, Any]:
    import numpy as np

    from app.serving.offline import infer_all, running_classifier
    from model.training.dataset import DatasetError, load_labelled_images
    from model.training.evaluate import evaluate as compare

    try:
        images = load_labelled_images(data)
    except DatasetError as error:
        raise StartError(str(error)) from error
    async with running_classifier(settings) as classifier:
        if classifier.model.labels != images.labels:
            raise StartError(f"the labels of {data} are not those of the model, in the same order")
        encoded = ((index, partial(_read, images, index)) for index in range(len(images)))
        logits = []
        with progress("evaluating", len(images)) as advance:
            async for index, outcome in infer_all(classifier.classify, encoded, IMAGES_IN_FLIGHT):
                if isinstance(outcome, ServiceError | OSError):
                    raise StartError(f"{printable(images.name(index))} cannot be classified: {outcome}")
                logits.append(outcome.logits)
                advance()
    return asdict(compare(np.stack(logits), images.targets, images.labels))


def _read(images: "LabelledImages", index: int) -> bytes:
    return images.read(index)[0]

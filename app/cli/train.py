"""The command `train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import Data, configure
from app.cli.output import explained_errors, out, progress, say
from app.cli.rows import printable
from app.errors import StartError
from app.process.cpu import available_cpus
from app.settings import BUNDLED_MODEL
from model.training.settings import TrainSettings

if TYPE_CHECKING:  # importing it takes a second
    from model.training.dataset import Decode, LabelledImages

_DEFAULTS = TrainSettings()


def train(
    data: Data,
    output: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to; resumes an interrupted training in it.")],
    start: Annotated[
        Path, typer.Option(help="Directory of the checkpoint whose encoder is fine-tuned.", show_default="the bundled weights")
    ] = BUNDLED_MODEL,
    epochs: Annotated[float, typer.Option(min=0.0, max=10_000.0, help="How often every image is seen.")] = _DEFAULTS.epochs,
    image_size: Annotated[
        int, typer.Option(min=14, max=4096, help="Side of the model's input, in pixels.")
    ] = _DEFAULTS.image_size,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536)] = _DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Peak, for the head.")] = _DEFAULTS.learning_rate,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that decode images.")] = _DEFAULTS.workers,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
) -> None:
    """Fine-tune a checkpoint's encoder on labelled images, decoded as the service decodes them."""
    with explained_errors("training"):
        from app.decoding.formats import check_decoders
        from app.decoding.pool.select import image_decoder
        from model.checkpoints.checkpoint import CheckpointError
        from model.training.dataset import DatasetError, load_labelled_images
        from model.training.train import TrainError, training_preprocessing
        from model.training.train import train as run_training

        recipe = TrainSettings(
            epochs=epochs, image_size=image_size, batch_size=batch_size, learning_rate=learning_rate, workers=workers
        )
        settings, preprocessing = configure("warning"), training_preprocessing(image_size)
        check_decoders(settings.image_formats)
        decode = image_decoder(settings, preprocessing).decode_whole
        try:
            images = _decodable(load_labelled_images(data), decode, skip_bad=skip_bad)
            run_training(start, images, decode, output, preprocessing, recipe)
        except (CheckpointError, DatasetError, TrainError) as error:
            raise StartError(str(error)) from error
    out.print(f"wrote {output}; measure it with: vit-serve evaluate DATA --model {output}", highlight=False)


def _decodable(images: "LabelledImages", decode: "Decode", *, skip_bad: bool) -> "LabelledImages":
    """Decode every image once, before hours are spent on training, and return those that can be decoded.

    Raises:
        StartError: no image can be decoded, or one of them cannot and is not to be skipped.
    """
    from model.training.dataset import check_images

    good = []
    with progress("checking images", len(images)) as advance:
        for index, fault in check_images(images, decode, available_cpus()):
            if fault is None:
                good.append(index)
            elif not skip_bad:
                sentence = f"{printable(images.name(index))} cannot be decoded: {fault.rstrip('.')}"
                raise StartError(f"{sentence}; --skip-bad leaves out such images")
            advance()
    if not good:
        raise StartError("none of the images can be decoded")
    if len(good) < len(images):
        say(f"leaving out {len(images) - len(good)} of {len(images)} images, which cannot be decoded")
    chosen = images.only(good)
    targets = set(chosen.targets)
    if empty := [label for index, label in enumerate(chosen.labels) if index not in targets]:
        say(f"no images of {', '.join(map(printable, empty))}: the model will never predict that")
    return chosen

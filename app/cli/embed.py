"""The command `embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.classify import image_files
from app.cli.options import IMAGES_IN_FLIGHT, Model, configure_offline
from app.cli.output import explained_errors, fail, out, progress, say
from app.cli.rows import printable
from app.errors import ServiceError, StartError
from app.process.exit import end_process
from app.process.signals import STOP, handled
from app.settings import Settings

if TYPE_CHECKING:
    from app.cli.features_file import FeaturesFile
    from app.serving.classifier import Classifier


def embed(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", exists=True)],
    to: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    model: Model = None,
    pooling: Annotated[str | None, typer.Option(help="Kind of features; `vit-serve info` lists them.")] = None,
    normalize: Annotated[bool, typer.Option(help="Scale features to length 1.")] = False,
) -> None:
    """Write features of images to a file. Interrupted, the same command goes on. Exits with 1 if an image fails."""
    files = list(image_files(paths))
    if not files:
        fail("there are no images in these folders")
    from app.serving.offline import run

    with explained_errors():
        failed = run(_embed(configure_offline(model), files, to, pooling, normalize))
    raise typer.Exit(failed > 0)


async def _embed(settings: Settings, files: list[Path], to: Path, pooling: str | None, normalize: bool) -> int:
    """Write a row for each file. Returns the number of failures."""
    from app.serving.offline import running_classifier

    async with running_classifier(settings) as classifier:
        try:
            features = classifier.check_features(pooling)
        except ServiceError as error:
            raise StartError(str(error)) from None
        with _opened(classifier, to, features, normalize) as found:
            done = found.done
            left = [file for file in files if printable(str(file)) not in done]
            failed = await _embed_all(classifier, found, left, features, normalize)
        found.finish()
    before = len(files) - len(left)
    out.print(f"{to}: {len(files) - failed} images, {before} of them from before; {failed} failed", highlight=False)
    return failed


def _opened(classifier: "Classifier", to: Path, features: str, normalize: bool) -> "FeaturesFile":
    try:
        from app.cli.features_file import FeaturesFile
    except ModuleNotFoundError:
        raise StartError("writing parquet needs pyarrow: pip install 'vit-serve[train]'") from None
    size = next(each.size for each in classifier.model.features if each.name == features)
    return FeaturesFile(to, size, {"model": classifier.model.name, "pooling": features, "normalized": normalize})


async def _embed_all(classifier: "Classifier", found: "FeaturesFile", files: list[Path], features: str, normalize: bool) -> int:
    from app.serving.offline import infer_all
    from app.serving.results import scaled

    def interrupt(*_: object) -> None:
        found.save()
        say("interrupted; the same command goes on from here")
        end_process(130)  # without joining a thread that reads from a slow disk

    failed = 0
    images = ((file, file.read_bytes) for file in files)
    with handled(STOP, interrupt), progress("embedding", len(files)) as advance:
        async for file, outcome in infer_all(lambda image: classifier.embed(image, features), images, IMAGES_IN_FLIGHT):
            path = printable(str(file))
            if isinstance(outcome, ServiceError | OSError):
                say(f"{path}: {outcome}")
                found.add(path, None, str(outcome))
                failed += 1
            else:
                found.add(path, scaled(outcome.vector, normalize=normalize))
            advance()
    return failed

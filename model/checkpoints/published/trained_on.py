"""TrainedOn: the published list of classes that weights were trained on, where a checkpoint says so."""

import re
from dataclasses import dataclass

from model.checkpoints.published.imagenet import LISTS, Library, class_names

_TAG = re.compile(r"(?:.*_)?(in(?:1|12|21|22)k)")
"""timm's tags name the data of each step of the training; that of the last one decides: `augreg_in21k_ft_in1k`."""

_DATA = {
    "in1k": ("imagenet-1k",),
    "in12k": ("imagenet-12k",),
    "in21k": ("imagenet-21k-goog", "imagenet-21k-miil"),
    "in22k": ("imagenet-22k",),
}
"""Lists of classes that a name of a data set can mean; how many classes there are tells them apart."""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """A list of classes, and what says that the weights were trained on it."""

    classes: str
    """One of `LISTS`."""
    library: Library
    said_by: str

    def names(self) -> tuple[str, ...]:
        """Names in class order."""
        return class_names(self.classes, self.library)

    def __str__(self) -> str:
        return f"{self.classes}, named by {self.said_by}"


def said_by_tag(tag: str, num_classes: int) -> TrainedOn | None:
    """Return what timm's tag says; None where it says nothing, or names classes that are not as many as the model has."""
    match = _TAG.fullmatch(tag)
    return _fitting(_DATA[match[1]], num_classes, f"timm's tag {tag}") if match else None


def said_by_dataset(dataset: str, num_classes: int) -> TrainedOn | None:
    """Return what the `dataset` of a configuration says, as `said_by_tag` does."""
    short = _short(dataset.rpartition("/")[2])  # on a hub an owner stands before it
    named = tuple(name for name in LISTS if _short(name) == short)
    return _fitting(named or _DATA.get(short, ()), num_classes, f"the dataset {dataset}")


def _short(dataset: str) -> str:
    return re.sub(r"[-_\s]", "", dataset.lower()).replace("imagenet", "in", 1)


def _fitting(lists: tuple[str, ...], num_classes: int, said_by: str) -> TrainedOn | None:
    fitting = (TrainedOn(classes, "timm", said_by) for classes in lists if LISTS[classes] == num_classes)
    return next(fitting, None)

"""Names of ImageNet's classes, in the order in which the models of timm and torchvision give them."""

import gzip
from functools import cache
from pathlib import Path
from typing import Literal

CLASSES_FILE = Path(__file__).with_name("imagenet_classes.tsv.gz")
"""A synset a line: its id, the lists that it is in, timm's name (all lemmas of WordNet), torchvision's name."""

LISTS = {
    "imagenet-1k": 1_000,
    "imagenet-12k": 11_821,
    "imagenet-21k-miil": 11_221,
    "imagenet-21k-goog": 21_843,
    "imagenet-22k": 21_841,
}
"""Lists of classes and their lengths, as timm calls them. In each of them the classes are in the order of their synsets."""


Library = Literal["timm", "torchvision"]
"""Whose names."""


@cache
def class_names(classes: str, library: Library = "timm") -> tuple[str, ...]:
    """Names of one of `LISTS`, in class order: `tabby, tabby cat` in timm and transformers, `tabby` in torchvision.

    torchvision has names for `imagenet-1k` alone.
    """
    column = ("timm", "torchvision").index(library) + 2
    lines = gzip.decompress(CLASSES_FILE.read_bytes()).decode().splitlines()
    rows = (line.split("\t") for line in lines)
    return tuple(row[column] for row in rows if classes in row[1].split(" "))

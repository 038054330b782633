"""Data that timm and torchvision publish: `python -m tests.support.published` rewrites model/checkpoints/published/."""

import gzip
import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.checkpoints.published.imagenet import CLASSES_FILE, LISTS
from model.checkpoints.published.timm_weights import COLUMNS, WEIGHTS_FILE
from model.checkpoints.timm.names import is_supported
from tests.support.torchvision_operators import declare_missing_operators

declare_missing_operators()

from timm import models as timm_models  # noqa: E402
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset  # noqa: E402
from torchvision.models._meta import _IMAGENET_CATEGORIES  # noqa: E402

_UNSET = ("test_input_size", "test_crop_pct", "label_offset", "label_names", "label_descriptions")
"""Keys of a `pretrained_cfg` without a column in the table."""


def weights() -> Iterator[dict[str, Any]]:
    """Yield timm's data of each `architecture.tag` that the reader supports, the default of an architecture first."""
    for architecture in timm_models.list_models():
        if is_supported(architecture):
            for name, cfg in timm_models.get_arch_pretrained_cfgs(architecture).items():
                row = {"name": name, **cfg.to_dict(remove_null=False), "classes": classes_of(cfg)}
                assert not any(row[key] for key in _UNSET), f"timm now says more of {name} than the table has columns for"
                yield row


def classes_of(cfg: Any) -> str:
    """The list of the classes that weights were trained on, "" for none of ours. timm tells it by their number."""
    classes = infer_imagenet_subset(cfg.to_dict()) if cfg.tag != "untrained" else None
    assert classes is None or classes in LISTS
    return classes or ""


def lists() -> dict[str, list[str]]:
    """The synsets of each list, in class order."""
    return {name: list(ImageNetInfo(name).label_names()) for name in LISTS}


def lemmas() -> dict[str, str]:
    """timm's name of each synset."""
    file = importlib.resources.files("timm.data") / "_info" / "imagenet_synset_to_lemma.txt"
    return dict(line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())


def torchvision_names() -> list[str]:
    """torchvision's names of the 1,000 classes, in their order."""
    return list(_IMAGENET_CATEGORIES)


def main() -> None:
    rows = ["\t".join(COLUMNS), *("\t".join(_cell(row[column]) for column in COLUMNS) for row in weights())]
    WEIGHTS_FILE.write_text("\n".join(rows) + "\n", encoding="utf-8")
    _write_classes(CLASSES_FILE)


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _write_classes(path: Path) -> None:
    members = {name: set(synsets) for name, synsets in lists().items()}
    names = lemmas()
    others = dict(zip(lists()["imagenet-1k"], torchvision_names(), strict=True))
    rows = []
    for synset in sorted(set().union(*members.values())):
        which = " ".join(name for name in LISTS if synset in members[name])
        rows.append(f"{synset}\t{which}\t{names[synset]}\t{others.get(synset, '')}\n")
    path.write_bytes(gzip.compress("".join(rows).encode(), mtime=0))


if __name__ == "__main__":
    main()

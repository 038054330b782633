"""Models to serve, with their names and settings: those of `VIT_MODELS_FILE` or of `VIT_MODELS`, or the one of `VIT_MODEL`."""

import difflib
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from app.errors import StartError
from app.setting_values import check_names
from app.settings import ModelSetting, Settings, with_changes
from model.checkpoints.tensors.regular_file import FileError, read_file

_MAX_FILE_BYTES = 1 << 20
_MAX_MODELS = 1000
_SETTINGS: tuple[str, ...] = get_args(ModelSetting)
_KEYS = ("aliases", *_SETTINGS)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve."""

    name: str | None
    """Name in paths and parameters; None for that of the checkpoint."""
    settings: Settings
    """Settings of the service, with those of this model in their place."""
    aliases: tuple[str, ...] = ()
    """Further names."""


@dataclass(frozen=True, slots=True)
class ModelList:
    """Models to serve. The first answers requests that name none."""

    models: tuple[ModelSpec, ...]
    content: bytes = b""
    """Of the file that they are from."""


def read_model_list(settings: Settings, before: ModelList | None = None) -> ModelList:
    """Read the models to serve.

    Args:
        settings: settings of the service.
        before: what was read last: it is returned if the file has not changed since.

    Raises:
        StartError: the settings contradict each other, or the file cannot be used.
    """
    named = [f"VIT_{name.upper()}" for name in ("model", "models", "models_file") if name in settings.model_fields_set]
    if len(named) > 1:
        raise StartError(f"{named[1]}: contradicts {named[0]}; unset one of them")
    if settings.models_file is not None:
        return _read_file(settings.models_file, settings, before)
    if not settings.models:
        return ModelList((ModelSpec(None, settings, settings.model_aliases),))
    specs: list[ModelSpec] = []
    for name, model in settings.models:
        aliases = () if specs else settings.model_aliases  # of the default model
        specs.append(ModelSpec(name, with_changes(settings, model=model), aliases))
    try:
        _check_distinct(specs)
    except ValueError as error:
        raise StartError(f"VIT_MODELS: {error}") from None
    return ModelList(_economical(specs))


def _read_file(file: Path, settings: Settings, before: ModelList | None) -> ModelList:
    try:
        content = read_file(file, _MAX_FILE_BYTES)
        if before is not None and content == before.content:
            return before
        return ModelList(_parse(tomllib.loads(content.decode()), settings), content)
    except (FileError, OSError) as error:
        raise StartError(f"VIT_MODELS_FILE: {file} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # of TOML, UTF-8 and of ours
        raise StartError(f"VIT_MODELS_FILE: {file}: {error}") from None


def _parse(document: dict[str, Any], settings: Settings) -> tuple[ModelSpec, ...]:
    _check_keys("the file", document, ("default", "models"))
    tables, default = document.get("models"), document.get("default")
    if not isinstance(tables, dict) or not tables:
        raise ValueError("it has no model: write a table [models.NAME] for each")
    if len(tables) > _MAX_MODELS:
        raise ValueError(f"it has {len(tables)} models; at most {_MAX_MODELS} are served")
    if default is not None and not (isinstance(default, str) and default in tables):
        raise ValueError(f"default: there is no model {default!r}")
    names = list(tables) if default is None else [default, *(name for name in tables if name != default)]
    specs = tuple(_spec(name, tables[name], settings) for name in names)
    _check_distinct(specs)
    return _economical(specs)


def _spec(name: str, table: Any, settings: Settings) -> ModelSpec:
    check_names((name,))
    if not isinstance(table, dict) or not isinstance(table.get("model"), str):
        raise ValueError(f"[models.{name}] must have a `model`: a directory, a hub id or a file")
    _check_keys(f"[models.{name}]", table, _KEYS)
    aliases = table.get("aliases", [])
    if not (isinstance(aliases, list) and all(isinstance(alias, str) for alias in aliases)):
        raise ValueError(f"[models.{name}]: aliases must be a list of names")
    check_names(tuple(aliases))
    changes = {key: value for key, value in table.items() if key != "aliases"}
    try:
        return ModelSpec(name, with_changes(settings, **changes), tuple(aliases))
    except StartError as error:
        raise ValueError(f"[models.{name}]: {error}") from None


def _economical(specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Spare all models but the default the second copy of their weights, unless the settings ask for it."""
    return tuple(
        replace(spec, settings=spec.settings.model_copy(update={"lone_on_all_cores": False}))
        if index and spec.settings.lone_on_all_cores == "auto"
        else spec
        for index, spec in enumerate(specs)
    )


def _check_keys(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {nearest[0]}?" if nearest else f"it may have {', '.join(known)}"
            raise ValueError(f"{where} has {key!r}, which is not understood; {advice}")


def _check_distinct(specs: Sequence[ModelSpec]) -> None:
    counts = Counter(name for spec in specs for name in (spec.name, *spec.aliases))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{twice[0]!r} names two models")

"""Known keys: what a configuration may say. Each key is honoured, harmless, or refused by name; none is passed over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LONGEST_VALUE = 80


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """The keys of one kind of configuration, by what becomes of them."""

    honoured: frozenset[str]
    """Read here, and checked where they are read."""
    harmless: frozenset[str] = frozenset()
    """Keys without effect on answers, whatever their value."""
    supported: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys without effect at these values; any other value makes another model."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Refused unless empty, each with the reason and what to do."""


def keys(words: str) -> frozenset[str]:
    """Return the keys of a line of text."""
    return frozenset(words.split())


def check_keys(raw: Mapping[str, Any], known: KnownKeys, where: str = "") -> None:
    """Refuse a configuration that says what would be ignored. A null says nothing, and passes.

    Args:
        raw: the content of the configuration.
        known: what is known of its keys.
        where: the key under which it stands in its file, for the message.

    Raises:
        ValueError: a key that is not known, or a value of one that is not supported; the message names both.
    """
    for key, value in raw.items():
        if value is None or key in known.honoured or key in known.harmless:
            continue
        name = f"{where}.{key}" if where else key
        if key in known.supported:
            _check_value(name, value, known.supported[key])
        elif key not in known.refused:
            raise ValueError(
                f"{name} {_short(value)} is not known here, and may change what the model answers; "
                "remove it from the file if your model does not depend on it"
            )
        elif value not in (False, "", [], {}):
            raise ValueError(f"{name} {_short(value)} is not supported: {known.refused[key]}")


def _check_value(name: str, value: Any, supported: tuple[Any, ...]) -> None:
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in supported):
        values = " and ".join(repr(one) for one in supported)
        raise ValueError(f"{name} {_short(value)} is not supported; supported is {values}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."

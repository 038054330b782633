"""Names of the model in protocols whose paths name it. A hub id `owner/name@revision` is served as `name`."""

import re

from app.api.dependencies import Admitted
from app.api.state import AppState
from app.errors import ModelNotFound
from app.serving.classifier import Classifier

VERSION = "1"
"""The one version that is served."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def served_name(classifier: Classifier) -> str:
    """Return the model's name as the last part of its hub id or path, without a revision, in characters that paths can hold."""
    return _NOT_IN_NAMES.sub("-", classifier.model.name.rstrip("/").rpartition("/")[2].partition("@")[0]) or "model"


def served_names(state: AppState, classifier: Classifier) -> tuple[str, ...]:
    """Return the model's name and its aliases."""
    return tuple(dict.fromkeys((served_name(classifier), *state.settings.model_aliases)))


def check_name(admitted: Admitted, name: str, version: str | None = None) -> None:
    """Raise if a path names another model than the one that is served.

    Raises:
        ModelNotFound: there is no such model, or not in this version.
    """
    check_served(served_names(admitted.state, admitted.classifier), name, version)


def check_served(names: tuple[str, ...], name: str, version: str | None) -> None:
    """Raise if a name is none of `names`, or the version another than the one that is served; 0 asks for the latest.

    Raises:
        ModelNotFound: see above.
    """
    if name not in names:
        raise ModelNotFound(f"There is no model {name[:128]!r}; served are {', '.join(names)}.")
    if version not in (None, "0", VERSION):
        raise ModelNotFound(f"Model {name!r} has no version {version[:32]!r}; it has version {VERSION}.")

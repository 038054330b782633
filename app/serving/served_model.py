"""ServedModel: one name, and the version of its model that answers now. asyncio only."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from app.errors import NotReady
from app.process.backoff import Backoff
from app.serving.classifier import Classifier
from app.serving.model_list import ModelSpec

State = Literal["ready", "loading", "unloaded"]

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_RETRY_AFTER_S = 5.0
_LONGEST_PAUSE_S = 60.0


class Version:
    """A loaded model, and the number of requests that hold it.

    Args:
        classifier: the model, started.
        size: bytes of memory that it takes.
    """

    def __init__(self, classifier: Classifier, size: int) -> None:
        self.classifier = classifier
        self.bytes = size
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def why_not_ready(self) -> str | None:
        """Reason why it does not answer, in one sentence; None if it does."""
        try:
            return self.classifier.why_not_ready
        except AttributeError:  # the thread that serves metrics may ask while it is freed
            return "It is being freed."

    @contextmanager
    def held(self) -> Iterator[Classifier]:
        """Hold the version while a request needs it: it is not closed before."""
        self._requests += 1
        self._idle.clear()
        try:
            yield self.classifier
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request holds it, or the time is over; then close it: what is still there fails with `Draining`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        await self.classifier.close()
        del self.classifier  # so that its memory is free, whoever still has this version


class ServedModel:
    """A model as clients name it.

    Args:
        spec: the model, and its settings.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.version: Version | None = None
        """The version that answers."""
        self.loading = False
        self.why_not_loaded = ""
        """Reason why the last load failed; empty after one that did not."""
        self.backoff = Backoff(_LONGEST_PAUSE_S)
        """Pause before a request, or the list of models, may load it again after a failure."""
        self.last_used = 0.0
        """Time of the event loop's clock."""
        self.label = spec.name or ""
        """Name in metrics; empty until a model without a name of its own is loaded."""
        self._name = spec.name or ""

    @property
    def name(self) -> str:
        """Name in paths; empty until a model without a name of its own is loaded."""
        return self._name

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return tuple(dict.fromkeys((self._name, *self.spec.aliases)))

    @property
    def bytes(self) -> int:
        """Memory of the version that answers."""
        return 0 if self.version is None else self.version.bytes

    @property
    def state(self) -> State:
        """State, as `GET /models` shows it."""
        if self.version is not None:
            return "ready"
        return "loading" if self.loading else "unloaded"

    @property
    def why_not_ready(self) -> str | None:
        """Reason why it does not answer, in one sentence; None if it does."""
        version = self.version  # metrics are read in other threads
        if version is not None:
            return version.why_not_ready
        return f"The model {self._name} is {'still loading' if self.loading else 'not loaded'}."

    def ready_version(self) -> Version:
        """Return the version that answers, and note that it is used.

        Raises:
            NotReady: none does.
        """
        reason = self.why_not_ready
        if self.version is None or reason is not None:
            raise NotReady(str(reason), _RETRY_AFTER_S)
        self.last_used = asyncio.get_running_loop().time()
        return self.version

    def put(self, version: Version | None) -> Version | None:
        """Have a version answer from the next request on, or none. Returns the one before."""
        before, self.version = self.version, version
        if version is not None:
            self.last_used = asyncio.get_running_loop().time()
            self.label = version.classifier.model.name
            self._name = self._name or path_name(self.label)
        return before


def path_name(name: str) -> str:
    """Return a model's name as the last part of its hub id or path, without a revision, in characters that paths can hold."""
    return _NOT_IN_NAMES.sub("-", name.rstrip("/").rpartition("/")[2].partition("@")[0]) or "model"

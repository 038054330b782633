"""Service: loading -> ready -> leaving -> draining -> closed. Accepts requests while ready or leaving, and waits for them on
shutdown."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog

from app.errors import DeadlineExceeded, Draining, NotReady
from app.metrics import Metrics
from app.process.cpu import lower_priority
from app.serving.admission import ReserveBytes
from app.serving.classifier import Classifier
from app.settings import Settings

_RETRY_AFTER_S = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request accepted before its body is read."""

    classifier: Classifier
    reserve_bytes: ReserveBytes
    """Reserves the size of each chunk of the body until the request is answered."""


class Service:
    """State of a classifier from its load to its end, and the requests in flight.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        load: loads the classifier; called in a thread.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Callable[[Settings, Metrics], Classifier]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._classifier: Classifier | None = None
        self._requests = 0
        self._uploads: set[asyncio.Timeout] = set()
        self.leaving = False
        """True once probes fail though requests are still accepted."""
        self.draining = False
        """True once no request is accepted any more."""
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.ready.set_function(lambda: not self.stopping and self.why_not_ready is None)
        metrics.inflight_requests.set_function(lambda: self._requests)

    async def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Load, warm up and become ready.

        Args:
            on_death: called if the engine dies, after everything queued has failed.

        Raises:
            StartError: it cannot start; the message is the reason in one sentence.
        """
        _log.info("loading", model=self._settings.model)
        # not asyncio's default pool: the loop would wait for it at its end, and a load cannot be interrupted
        pool = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=lower_priority)
        try:
            loading = asyncio.get_running_loop().run_in_executor(pool, self._load, self._settings, self._metrics)
            classifier = await loading
        finally:
            pool.shutdown(wait=False)
        classifier.start(on_death)
        self._classifier = classifier
        model = classifier.describe()
        _log.info(
            "ready",
            model=model.name,
            engine=model.engine,
            device=model.device,
            dtype=model.dtype,
            classes=len(model.labels),
            labels=model.labels_source,
            activation=model.activation,
        )

    @property
    def stopping(self) -> bool:
        """True once the service was told to stop."""
        return self.leaving or self.draining

    @property
    def why_not_ready(self) -> str | None:
        """Reason why no request is accepted now, in one sentence; None if requests are."""
        if self.draining:
            return "The service is shutting down."
        if self._classifier is None:
            return "The model is still loading."
        return self._classifier.why_not_ready

    def ready_classifier(self) -> Classifier:
        """Return the classifier.

        Raises:
            NotReady: the model is loading, or its worker has died.
            Draining: the service is shutting down.
        """
        reason = self.why_not_ready
        if self.draining:
            raise Draining(str(reason), _RETRY_AFTER_S)
        if self._classifier is None or reason is not None:
            raise NotReady(str(reason), _RETRY_AFTER_S)
        return self._classifier

    def check_ready(self) -> None:
        """Check what probes ask: whether a load balancer should send requests here.

        Raises:
            NotReady, Draining: see `ready_classifier`; also while the service is leaving.
        """
        if self.leaving:
            raise Draining("The service is shutting down.", _RETRY_AFTER_S)
        self.ready_classifier()

    def leave(self) -> None:
        """Fail probes from now on, and accept requests until the drain."""
        self.leaving = True
        _log.info("leaving", requests=self._requests)

    @contextmanager
    def accept(self) -> Iterator[Accepted]:
        """Accept a request if the service is ready and a slot is free; a drain waits until it has ended.

        Its images take their slots once they have arrived, so that slow uploads hold none.

        Raises:
            NotReady, Draining: see `ready_classifier`.
            QueueFull: no slot is free.
        """
        classifier = self.ready_classifier()
        classifier.admission.check_room()
        self._requests += 1
        self._idle.clear()
        try:
            with classifier.admission.reserve_bytes() as reserve_bytes:
                yield Accepted(classifier, reserve_bytes)
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    @asynccontextmanager
    async def uploading(self, deadline: float) -> AsyncIterator[None]:
        """Limit the time in which the body of a request arrives.

        Raises:
            DeadlineExceeded: the body did not arrive in time.
            Draining: the service was closed meanwhile.
        """
        try:
            async with asyncio.timeout_at(deadline) as limit:
                self._uploads.add(limit)
                try:
                    yield
                finally:
                    self._uploads.remove(limit)
        except TimeoutError:
            if self._closed:
                raise Draining("The service is shutting down.", _RETRY_AFTER_S) from None
            raise DeadlineExceeded("The deadline passed before the whole request had arrived.") from None

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight. Returns False on timeout."""
        self.draining = True
        _log.info("draining", requests=self._requests)
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("drain timed out", requests=self._requests)
            return False
        return True

    async def close(self) -> None:
        """Stop the classifier; everything queued, in flight or arriving fails with `Draining`."""
        self.draining = True
        self._closed = True
        for limit in self._uploads:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        if self._classifier is not None:
            await self._classifier.close()

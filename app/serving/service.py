"""Service: loading -> ready -> leaving -> draining -> closed. Accepts requests while ready or leaving, and waits for them on
shutdown."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog

from app.errors import DeadlineExceeded, Draining, NotReady
from app.metrics import Metrics
from app.serving.admission import ReserveBytes
from app.serving.classifier import Classifier
from app.serving.model_loader import Load
from app.serving.registry import MakeDecoder, Registry
from app.settings import Settings

_RETRY_AFTER_S = 2.0

_log = structlog.get_logger(__name__)


class Service:
    """Life cycle of the service, and the requests in flight.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        load: loads a model; called in a thread.
        make_decoder: makes the decoder that models share; called in a thread.
        on_ready: called once all models are loaded.

    Raises:
        StartError: the list of models cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        load: Load,
        make_decoder: MakeDecoder,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.models = Registry(settings, metrics, load, make_decoder)
        self._on_ready = on_ready
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
        """Load all models, and become ready.

        Args:
            on_death: called if an engine dies, after everything queued has failed.

        Raises:
            StartError: it cannot start; the message is the reason in one sentence.
        """
        await self.models.start(on_death)
        self._on_ready()

    @property
    def stopping(self) -> bool:
        """True once the service was told to stop."""
        return self.leaving or self.draining

    @property
    def why_not_ready(self) -> str | None:
        """Reason why the service is not ready, in one sentence; None if it is."""
        return "The service is shutting down." if self.draining else self.models.why_not_ready

    def check_accepting(self) -> None:
        """Raise if no request is accepted now.

        Raises:
            NotReady: models are loading, or a worker has died.
            Draining: the service is shutting down.
        """
        reason = "The service is shutting down." if self.draining else self.models.why_not_accepting
        if reason is not None:
            raise (Draining if self.draining else NotReady)(reason, _RETRY_AFTER_S)

    def check_ready(self) -> None:
        """Check what probes ask: whether a load balancer should send requests here.

        Raises:
            NotReady, Draining: see `check_accepting`; also while the service is leaving.
        """
        if self.leaving:
            raise Draining("The service is shutting down.", _RETRY_AFTER_S)
        self.check_accepting()
        if (reason := self.models.why_not_ready) is not None:
            raise NotReady(reason, _RETRY_AFTER_S)

    def leave(self) -> None:
        """Fail probes from now on, and accept requests until the drain."""
        self.leaving = True
        _log.info("leaving", requests=self._requests)

    def ready_classifier(self, name: str | None = None) -> Classifier:
        """Return the version of a model that answers now, for what is done without waiting.

        Args:
            name: name of the model. Default: the first one.

        Raises:
            NotReady, Draining: see `check_accepting`; or the model is not loaded.
            ModelNotFound: there is no such model.
        """
        self.check_accepting()
        return self.models.find(name).ready_version().classifier

    @contextmanager
    def accept(self) -> Iterator[ReserveBytes]:
        """Accept a request before its body is read, if the service is ready and a slot is free; a drain waits for its end.

        Yields a function that reserves the size of each chunk of the body. Images take their slots once they have arrived, so
        that slow uploads hold none.

        Raises:
            NotReady, Draining: see `check_accepting`.
            QueueFull: no slot is free.
        """
        self.check_accepting()
        admission = self.models.shared.admission
        admission.check_room()
        self._requests += 1
        self._idle.clear()
        try:
            with admission.reserve_bytes() as reserve_bytes:
                yield reserve_bytes
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
        """Stop the models; everything queued, in flight or arriving fails with `Draining`."""
        self.draining = True
        self._closed = True
        for limit in self._uploads:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        await self.models.close()

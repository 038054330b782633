"""Shared: what all models of a service share: decoding workers, slots for images, cores, and the process that explains."""

from app.decoding import Decoder
from app.engines import Engine
from app.explaining.keeper import Turn
from app.metrics import Metrics
from app.serving.admission import Admission
from app.serving.batching import BatchSlots
from app.settings import Settings


class Shared:
    """Parts that models share.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        decoder: decodes the images of all models; started and closed with the rest.
    """

    def __init__(self, settings: Settings, metrics: Metrics, decoder: Decoder) -> None:
        self.decoder = decoder
        self.admission = Admission(max_images=settings.max_inflight_images, max_bytes=settings.max_inflight_bytes)
        self.explanations = Admission(max_images=settings.max_explained_images)
        self.turn = Turn()
        self.serving = False
        """True once images may be answered: what loads then leaves them the cores."""
        self._slots: dict[tuple[str, int], BatchSlots] = {}
        metrics.max_inflight_images.set(settings.max_inflight_images)
        metrics.max_inflight_bytes.set(settings.max_inflight_bytes)
        metrics.inflight_bytes.set_function(lambda: self.admission.bytes)

    def slots(self, engine: Engine) -> BatchSlots:
        """Return the slots of an engine's device. Engines that run other numbers of batches there do not share them."""
        key = (engine.device, engine.max_concurrent_batches)
        return self._slots.setdefault(key, BatchSlots(engine.max_concurrent_batches))

    def warm_up(self) -> None:
        """Start the decoding workers. Blocks, for half a second.

        Raises:
            StartError: no decoding process can be started.
        """
        self.decoder.warm_up()

    def start(self) -> None:
        """Start decoding, in the running event loop."""
        self.decoder.start()
        self.serving = True

    async def close(self) -> None:
        """End the decoder; images that wait for it fail with `Draining`."""
        await self.decoder.close()

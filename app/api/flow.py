"""Flow: when a connection is read."""

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Uvicorn's, which reads no more while the application has enough of a body, and reads no more while it is held, too.

    A transport gives as many as 32 pieces of 256 KB in one round of the event loop if nothing stops it.
    """

    _held = False

    @property
    def paused(self) -> bool:
        """Whether nothing is read now."""
        return self._held or self.read_paused

    def hold(self) -> None:
        """Read nothing until `release`, whatever the application says."""
        if not (self.paused or self._transport.is_closing()):
            self._transport.pause_reading()
        self._held = True

    def release(self) -> None:
        """Read again, unless the application has enough."""
        self._held = False
        if not (self.read_paused or self._transport.is_closing()):
            self._transport.resume_reading()

    def pause_reading(self) -> None:
        if not self.paused:
            self._transport.pause_reading()
        self.read_paused = True

    def resume_reading(self) -> None:
        if self.read_paused and not self._held:
            self._transport.resume_reading()
        self.read_paused = False

"""Flow: when a connection is read, and when not."""

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Uvicorn's flow control, which can also be held, whatever the application says.

    A transport that nothing stops reads up to 32 pieces of 256 KB in one round of the event loop.
    """

    _held = False

    @property
    def paused(self) -> bool:
        """True while nothing is read."""
        return self._held or self.read_paused

    def hold(self) -> None:
        """Read nothing until `release`."""
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

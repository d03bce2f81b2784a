"""Actor that passes events from the workers to the driver. Without heavy imports, so that its process starts fast."""

from typing import Any


class Mailbox:
    """A queue of events: rank 0 puts, the driver takes."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        """Append an event."""
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """Return the events since the last call, in order, and remove them."""
        taken, self.events = self.events, []
        return taken

"""An actor between the workers and the driver. In a file without imports, so that its process starts at once."""

from typing import Any


class Mailbox:
    """Rank 0 puts events, the driver takes them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        """Adds an event."""
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call, in order."""
        taken, self.events = self.events, []
        return taken

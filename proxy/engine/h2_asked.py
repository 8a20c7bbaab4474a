"""What a listener asks of an HTTP/2 connection, whatever library carries it.

Knows the state that both engines keep under the same names, and nothing of how they come to it.
"""

from typing import Any

from proxy.engine.events import Event


class Asked:
    """The questions of ``seam.Connection`` that have one answer for both engines."""

    __slots__ = ()

    closed: bool
    events: list[Event]
    table: dict[int, Any]
    """Requests in progress."""
    last: int | None
    """The last stream that our final GOAWAY accepts."""
    peer_leaving: bool
    """The client has said GOAWAY."""

    def take_events(self) -> list[Event]:
        """Events that arose outside ``receive``."""
        events = self.events
        if not events:
            return []
        taken = events[:]
        events.clear()
        return taken

    @property
    def wants_input(self) -> bool:
        """True until the connection has ended: HTTP/2 has windows for back-pressure."""
        return not self.closed

    @property
    def finished(self) -> bool:
        """True when the connection has ended, or one side says GOAWAY and no stream is left."""
        return self.closed or (not self.table and (self.last is not None or self.peer_leaving))

    @property
    def streams(self) -> int:
        """Requests in progress, until the last of the answer was framed."""
        return len(self.table)

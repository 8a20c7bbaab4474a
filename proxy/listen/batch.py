"""Body bytes that came together stay together: one step for the exchange and one write to the backend, not one for each datagram.

Knows events and their order. Knows neither connections nor sockets.
"""

from collections.abc import Iterable, Iterator

from proxy.engine.events import Event, RequestBody
from proxy.engine.seam import Handle


def joined(events: Iterable[tuple[Handle, Event]]) -> Iterator[tuple[Handle, Event]]:
    """*events* in their order, neighbours that carry the body of one stream made into one. Bounded by what one batch may hold."""
    held: list[RequestBody] = []
    owner = -1
    for handle, event in events:
        if type(event) is RequestBody:
            if held and (owner != handle or held[0].stream != event.stream):
                yield owner, _whole(held)
                held = []
            owner = handle
            held.append(event)
            continue
        if held:
            yield owner, _whole(held)
            held = []
        yield handle, event
    if held:
        yield owner, _whole(held)


def _whole(pieces: list[RequestBody]) -> RequestBody:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return RequestBody(first.stream, b"".join([piece.data for piece in pieces]), sum([piece.credit for piece in pieces]))

"""In which order the events of a stream may come, on any engine."""

from proxy.engine.events import Drained, RequestBody, RequestEnd, RequestHead, StreamReset


def follow(seen: list, event) -> None:
    """Keep *event* behind those that were *seen* of its stream, unless it is Drained. Asserts that it may come there."""
    if isinstance(event, RequestHead):
        assert not seen, f"{event} after {seen}"
    elif isinstance(event, RequestBody | RequestEnd):
        assert isinstance(seen[0], RequestHead)
        assert not seen[0].end, f"{event} after a head that ended"
        assert not any(isinstance(old, RequestEnd | StreamReset) for old in seen), f"{event} after {seen}"
    elif isinstance(event, StreamReset):
        assert isinstance(seen[0], RequestHead)
        assert not any(isinstance(old, StreamReset) for old in seen), f"{event} twice"
    if not isinstance(event, Drained):
        seen.append(event)

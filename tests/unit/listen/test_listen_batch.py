"""Body bytes of one stream that came together are delivered together, and nothing changes its place."""

from proxy.engine.events import Drained, RequestBody, RequestEnd
from proxy.listen.batch import joined


def test_neighbours_of_one_stream_are_joined_with_their_credit() -> None:
    events = [(1, RequestBody(0, b"ab", 2)), (1, RequestBody(0, b"c", 3)), (1, RequestEnd(0, []))]
    assert list(joined(events)) == [(1, RequestBody(0, b"abc", 5)), (1, RequestEnd(0, []))]


def test_other_streams_connections_and_events_stand_between() -> None:
    events = [
        (1, RequestBody(0, b"a", 1)),
        (1, RequestBody(4, b"b", 1)),
        (2, RequestBody(4, b"c", 1)),
        (2, Drained(8)),
        (2, RequestBody(4, b"d", 1)),
        (2, RequestBody(4, b"e", 1)),
    ]
    assert list(joined(events)) == [*events[:4], (2, RequestBody(4, b"de", 2))]


def test_nothing_stays_nothing() -> None:
    assert list(joined([])) == []

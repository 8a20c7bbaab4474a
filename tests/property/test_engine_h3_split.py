"""Any split of a connection's stream bytes, in any interleaving of its streams, gives the same events for each stream."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.events import RequestBody
from proxy.engine.h3_frames import pack_int
from tests.sim.wire import POST, Dialogue, data, head

GREASE = pack_int(0x1F * 5 + 0x21) + pack_int(4) + b"abcd"
PIECES = st.lists(st.one_of(st.binary(min_size=1, max_size=300).map(data), st.just(GREASE)), max_size=5).map(b"".join)
STREAM = st.tuples(
    st.sampled_from([head(POST), head([*POST, (b"x-long", b"v" * 700)]), head([*POST, (b"X-Bad", b"1")]), GREASE + head(POST)]),
    PIECES,
    st.sampled_from([b"", head([(b"x-sum", b"1")]), head([(b":path", b"/")])]),
).map(b"".join)


def run(streams: list[bytes], cuts: list[tuple[int, int]]) -> tuple:
    d = Dialogue()
    left = {4 * number: stream for number, stream in enumerate(streams)}
    told: dict[int, list] = {number: [] for number in left}
    for which, size in [*cuts, *[(number, 1 << 20) for number in range(len(streams))]]:
        number = 4 * (which % len(streams))
        if number in left:
            piece, left[number] = left[number][:size], left[number][size:]
            end = not left[number]
            for event in d.data(number, piece, end=end):
                told[event.stream].append(event)
            if end:
                del left[number]
    merged = {}
    for number, events in told.items():
        body = b"".join(event.data for event in events if isinstance(event, RequestBody))
        merged[number] = (body, [event for event in events if not isinstance(event, RequestBody)])
    return merged, d.wire.closed, sorted(d.wire.cuts)


@settings(max_examples=150, deadline=None)
@given(st.lists(STREAM, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), max_size=60))
def test_any_split_gives_the_same_events(streams: list[bytes], cuts: list[tuple[int, int]]) -> None:
    assert run(streams, cuts) == run(streams, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 2, 4, 6, 10]), st.binary(max_size=80), st.booleans()), max_size=12))
def test_no_bytes_make_it_raise(pieces: list[tuple[int, bytes, bool]]) -> None:
    d = Dialogue()
    ended = set()
    for stream, piece, end in pieces:
        if stream not in ended:
            d.data(stream, piece, end=end)
            if end:
                ended.add(stream)

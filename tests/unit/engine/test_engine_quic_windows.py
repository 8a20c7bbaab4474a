"""Receive windows on every QUIC engine: they grow where a client uses them up within a round trip, as far as they may."""

import pytest

from proxy.engine.events import RequestBody, RequestEnd
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import EngineLimits
from tests.sim import engines
from tests.sim.simulator import Link, World

pytestmark = pytest.mark.parametrize("engine", engines.parameters())
KIB = 1024
LIMITS = EngineLimits(stream_window=64 * KIB, connection_window=128 * KIB)
SIZE = 4 * KIB * KIB
TRIES = 5
"""Uploads: quiche looks at the machine's clock, and on a busy one a client is too slow for more, as it should be."""
FRAMING = KIB
"""Heads and the beginnings of frames take of the windows as well."""


def upload(engine, settings: QuicSettings, *, consume: bool = True) -> tuple[int, int, World]:
    """The largest windows, of the stream and of the connection, that a client of 20 ms away was given; and the world that it was in."""
    world = World(Link(latency=0.01), LIMITS, settings, engine)
    client = world.connect()
    taken = 0
    widest = [0, 0]

    def serve(handle: int, event: object) -> None:
        nonlocal taken
        if isinstance(event, RequestBody) and consume:
            taken += len(event.data)
            world.endpoint.consumed(handle, event.stream, len(event.data))
        elif isinstance(event, RequestEnd):
            world.endpoint.respond(handle, event.stream, 200, [], b"")

    def look() -> bool:
        stream = client.quic._streams.get(0)
        if stream is not None:
            widest[0] = max(widest[0], stream.max_stream_data_remote - taken)
            widest[1] = max(widest[1], client.quic._remote_max_data - taken)
        return bool(client.answers and client.answers[0].ended)

    world.serve = serve
    client.on_ready = lambda: client.request(b"/", b"POST", body=bytes(SIZE)) and None
    done = world.run(look, seconds=60 if consume else 1)
    assert done == consume
    return widest[0], widest[1], world


def test_they_grow_to_their_bound_and_no_further(engine) -> None:
    grown = False
    for _ in range(TRIES):
        stream, connection, _ = upload(engine, QuicSettings(max_stream_window=256 * KIB, max_connection_window=384 * KIB))
        assert stream <= 256 * KIB + FRAMING
        assert connection <= 384 * KIB + FRAMING
        grown = stream > 180 * KIB and connection > 180 * KIB
        if grown:
            break
    assert grown


def test_without_a_larger_bound_they_stay(engine) -> None:
    stream, connection, _ = upload(engine, QuicSettings())
    assert stream <= 64 * KIB + FRAMING
    assert connection <= 128 * KIB + FRAMING


def test_what_nobody_takes_makes_none_grow(engine) -> None:
    stream, connection, world = upload(engine, QuicSettings(max_stream_window=256 * KIB, max_connection_window=384 * KIB), consume=False)
    assert stream <= 64 * KIB + FRAMING
    assert connection <= 128 * KIB + FRAMING
    assert sum(len(event.data) for event in world.of(RequestBody)) <= 64 * KIB

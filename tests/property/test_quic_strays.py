"""Whatever comes to a worker with siblings is answered, dropped, kept for one of them or a connection's: and counted once."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.quic_lb import Layout
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.simulator import SERVER, World

PEER = ("203.0.113.9", 999)
FORMS = (None, Routable(Layout(0, 8, 10, slot=True), b"the west"), Routable(Layout(2, 4, 6, slot=True, key=bytes(16)), b"west"))


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Nearly a packet for a connection ID of ours, or for another."""
    cid = Minter(
        Keyring.alone(b"s" * 16), random.Random(draw(st.integers(0, 3))).randbytes, draw(st.sampled_from(FORMS)), draw(st.integers(0, 255))
    )()[0]
    cid = draw(st.sampled_from([cid, cid[:-1], cid + b"\x07"]) | st.binary(max_size=25))
    rest = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        return bytes([draw(st.integers(0, 0x7F))]) + cid + rest
    length = draw(st.sampled_from([len(cid)]) | st.integers(0, 255))
    return bytes([draw(st.integers(0x80, 0xFF))]) + draw(st.sampled_from([b"\0\0\0\x01", b"abcd"])) + bytes([length]) + cid + rest


@pytest.mark.parametrize("engine", engines.parameters())
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_each_datagram_has_one_end(engine: engines.Engine, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    siblings = data.draw(st.frozensets(st.integers(0, 255)) | st.just(frozenset(range(256))))
    world = World(engine=engine, settings=QuicSettings(slot=3, routable=form))
    endpoint = world.endpoint
    endpoint.siblings = siblings
    datagrams = [Datagram(each, PEER, SERVER) for each in data.draw(st.lists(st.binary(max_size=60) | hostile(), max_size=12))]
    assert endpoint.receive(datagrams, 0.0) == []
    strays = endpoint.take_strays()
    assert all(slot in siblings and slot != 3 and datagram in datagrams for slot, datagram in strays)
    assert len(endpoint.take_datagrams(0.0)) + endpoint.dropped + len(strays) == len(datagrams)
    assert endpoint.receive_strays([datagram for _, datagram in strays], 0.0) == []
    assert (endpoint.take_strays(), endpoint.take_datagrams(0.0), endpoint.strays_dropped) == ([], [], len(strays))

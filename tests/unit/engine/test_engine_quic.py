"""The endpoint: what makes a connection and what does not, TLS by SNI, client certificates, the end of connections."""

import gc
import random
from types import SimpleNamespace

import pytest
from aioquic.buffer import Buffer
from aioquic.quic import connection as connection_module
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder

from proxy.engine.events import ConnectionClosed, ConnectionReady, Rejected, RequestHead
from proxy.engine.quic import packets
from proxy.engine.quic.endpoint import STATELESS_ANSWERS, QuicEndpoint
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram, Endpoint, EngineLimits
from proxy.errors import Reset
from tests.sim.hostile import v
from tests.sim.material import material, profile
from tests.sim.simulator import SERVER, Client, Link, World

PEER = ("203.0.113.9", 999)


def initial(dcid: bytes = b"d" * 8, payload: bytes = b"\1", *, scid: bytes = b"s" * 8, number: int = 0, version: int = 1) -> bytes:
    """An Initial packet in a datagram of 1200 bytes, with frames of our own."""
    keys = CryptoPair()
    keys.setup_initial(cid=dcid, is_client=True, version=version)
    builder = QuicPacketBuilder(host_cid=scid, peer_cid=dcid, version=version, is_client=True, max_datagram_size=1200, packet_number=number)
    builder.start_packet(QuicPacketType.INITIAL, keys)
    builder._buffer.push_bytes(payload)
    return builder.flush()[0][0]


def crypto(offset: int, data: bytes) -> bytes:
    return v(0x06, offset, len(data)) + data


def closed(world: World) -> list[str]:
    return [event.error for event in world.of(ConnectionClosed)]


def test_it_is_an_endpoint() -> None:
    endpoint: Endpoint = QuicEndpoint(lambda _: None, EngineLimits(), QuicSettings(), b"s" * 16)
    assert (endpoint.version, endpoint.connections, endpoint.deadline()) == ("HTTP/3", 0, None)


JUNK = {
    "empty": b"",
    "one byte": b"\xc0",
    "short header": b"\x40" + bytes(40),
    "fixed bit off": bytes(1300),
    "small initial": initial()[:1199],
    "long header cut": b"\xc0\0\0\0\1\x14",
    "version 0": b"\xc0\0\0\0\0\x08" + bytes(1300),
    "short client id": initial(b"d" * 7, crypto(0, b"\1")),
    "long client id": b"\xc0\0\0\0\1\x15" + bytes(1300),
    "handshake": bytes([0xE0]) + initial(b"d" * 8)[1:],
    "not authentic": initial()[:40] + bytes(1160),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_makes_no_connection_and_no_answer(name: str) -> None:
    world = World()
    world.inject(JUNK[name])
    assert world.endpoint.connections == 0
    assert world.endpoint.dropped == 1
    assert world.endpoint.take_datagrams(0.0) == []
    assert world.events == []
    assert not world.endpoint._by_cid


def test_random_bytes_never_raise() -> None:
    world = World()
    rng = random.Random(5)
    good = initial(b"d" * 8, crypto(0, b"\1\0\1\0"))
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(40)] = rng.randrange(256)
        world.inject(bytes(data))
        world.inject(rng.randbytes(rng.randrange(1500)))
    world.run(seconds=40)
    assert world.endpoint.connections == 0
    assert world.endpoint.handshakes == 0


def test_version_negotiation_is_answered_smaller_and_not_without_end() -> None:
    world = World()
    hello = b"\xc0\x0a\x0a\x0a\x0a\xff" + bytes(255) + b"\xff" + b"s" * 255 + bytes(900)
    told = world.endpoint.receive([Datagram(hello, PEER, SERVER)] * (STATELESS_ANSWERS + 5), 0.0)
    answers = world.endpoint.take_datagrams(0.0)
    assert told == []
    assert len(answers) == STATELESS_ANSWERS
    assert world.endpoint.dropped == 5
    header = pull_quic_header(Buffer(data=b"\xc0\0\0\0\0" + b"\0\0" + answers[0].data[-12:]))
    assert header.supported_versions[:2] == list(packets.VERSIONS)
    assert len(answers[0].data) < len(hello)
    assert answers[0].data[5:262] == b"\xff" + b"s" * 255 + b"\xff"
    assert answers[0].data[:1] >= b"\xc0"
    world.inject(hello[:1100])
    assert world.endpoint.take_datagrams(0.0) == []


def test_a_client_that_offers_only_another_version_first_ends_on_ours() -> None:
    world = World()
    client = world.connect(Client(original_version=0x5A6A7A8A, supported_versions=[0x5A6A7A8A, 1]))
    assert world.run(lambda: client.ready, seconds=5)


def test_version_2_works() -> None:
    world = World()
    client = world.connect(Client(original_version=0x6B3343CF, supported_versions=[0x6B3343CF]))
    assert world.run(lambda: client.ready, seconds=5)


@pytest.mark.parametrize("why", ["admit", "draining", "full"])
def test_refused_connections_are_told_so(why: str) -> None:
    asked = []
    world = World(
        settings=QuicSettings(connections=1) if why == "full" else None,
        admit=lambda _, peer: asked.append(peer) or why != "admit",
    )
    if why == "full":
        first = world.connect(Client(address=("198.51.100.1", 1)))
        assert world.run(lambda: first.ready)
    if why == "draining":
        world.endpoint.refuse_new()
    client = world.connect()
    world.run(lambda: client.closed is not None, seconds=5)
    assert client.quic._close_event.error_code == 0x2
    assert world.endpoint.connections == (1 if why == "full" else 0)
    assert closed(world) == []
    assert asked == ([client.address] if why == "admit" else [("198.51.100.1", 1)] if why == "full" else [])


def test_handshakes_in_progress_are_bounded_and_time_out() -> None:
    world = World(settings=QuicSettings(handshakes=10, handshake_timeout=3.0))
    for number in range(15):
        world.inject(initial(b"dest%04d" % number, crypto(0, b"\1\0\1\0")))
    assert (world.endpoint.handshakes, world.endpoint.connections, world.endpoint.dropped) == (10, 10, 5)
    world.run(seconds=2.9)
    assert world.endpoint.connections == 10
    world.run(seconds=0.2)
    assert closed(world) == ["handshake_timeout"] * 10
    assert (world.endpoint.handshakes, world.endpoint.connections) == (0, 0)
    assert not world.endpoint._by_cid
    client = world.connect()
    assert world.run(lambda: client.ready)


@pytest.mark.parametrize("how", ["in order", "sparse"])
def test_a_client_hello_without_end_is_cut(how: str) -> None:
    """The library would hold 16 MB of it, or 512 KB with a gap, for a client that nobody knows."""
    world = World()
    sent = 0
    for number in range(200):
        offset = number * 1000 if how == "in order" else 16_000 + number * 1000
        world.inject(initial(b"d" * 8, crypto(offset, (b"\1\xff\xff\xff" if not number else b"") + bytes(1000)), number=number))
        sent += 1000
        if world.of(ConnectionClosed):
            break
    assert closed(world) == ["crypto_buffer_exceeded"]
    assert sent <= 18_000


def test_many_gaps_in_handshake_data_are_cut() -> None:
    world = World()
    for number in range(40):
        frames = b"".join(crypto(2 + 8 * n, b"x") for n in range(number * 10, number * 10 + 10))
        world.inject(initial(b"d" * 8, frames, number=number))
    assert closed(world) == ["crypto_buffer_exceeded"]


def test_connection_ids_are_unique_and_differ_between_starts() -> None:
    mint, other = Minter(b"s" * 16, b"1"), Minter(b"s" * 16, b"2")
    made = [mint() for _ in range(5000)]
    assert len({cid for cid, _ in made}) == len({token for _, token in made}) == 5000
    assert {len(cid) for cid, _ in made} == {packets.CID_BYTES}
    assert not {cid for cid, _ in made} & {other()[0] for _ in range(5000)}
    again = Minter(b"s" * 16, b"1")
    assert again() == made[0]


def test_the_certificate_is_chosen_by_sni() -> None:
    world = World()
    world.profiles["b.example"] = profile("b.example")
    for name in ("a.example", "b.example"):
        client = world.connect(Client(name, (name, 1)))
        assert world.run(lambda: client.ready), client.closed  # noqa: B023  # run within the turn
        world.run(seconds=0.1)
    assert [(event.sni, event.tls_profile) for event in world.of(ConnectionReady)] == list(world.profiles.items())


def test_pem_is_parsed_once_for_a_profile_and_forgotten_with_it() -> None:
    world = World()
    for number in range(3):
        client = world.connect(Client(address=("198.51.100.1", number)))
        assert world.run(lambda: client.ready)  # noqa: B023  # run within the turn
    assert len(world.endpoint._identities._parsed) == 1
    world.events.clear()
    world.profiles["a.example"] = profile("a.example")
    client = world.connect(Client(address=("198.51.100.2", 1)))
    assert world.run(lambda: client.ready)
    for client in world.clients:
        client.quic.close()
    world.run(seconds=40)
    world.events.clear()
    gc.collect()
    assert len(world.endpoint._identities._parsed) == 1


@pytest.mark.parametrize(("name", "alpn", "alert"), [("c.example", ["h3"], 112), ("a.example", ["hq"], 120)])
def test_unknown_names_and_protocols_are_refused(name: str, alpn: list[str], alert: int) -> None:
    world = World()
    client = world.connect(Client(name, alpn_protocols=alpn))
    world.run(lambda: client.closed is not None, seconds=5)
    assert client.closed.error_code == 0x100 + alert
    assert closed(world) == ["tls_alert"]
    assert world.endpoint.connections == 0


def test_sni_is_compared_in_lower_case_and_may_be_absent() -> None:
    seen = []
    world = World(select=lambda sni: seen.append(sni) or world.profiles["a.example"])
    client = world.connect(Client("A.Example", verify_mode=0))
    assert world.run(lambda: client.ready)
    client = world.connect(Client("192.0.2.1", ("198.51.100.1", 1), verify_mode=0))
    assert world.run(lambda: client.ready)
    assert seen == ["a.example", None]


RULES = {
    "none, required": (None, True, 116),
    "none, optional": (None, False, None),
    "good": ("client", True, None),
    "of a stranger": ("stranger", False, 42),
    "not for clients": ("server", True, 42),
}


@pytest.mark.parametrize("name", RULES)
def test_client_certificates(name: str) -> None:
    shown, required, alert = RULES[name]
    world = World()
    world.profiles["a.example"] = profile("a.example", SimpleNamespace(ca_pem=material("ca", ca=True).chain_pem, required=required))
    options = {}
    if shown:
        owned = material(shown, None if shown == "stranger" else "ca", client=shown != "server")
        options = {"certificate": owned.certificate, "private_key": owned.key}
    client = world.connect(Client(**options))
    world.run(lambda: bool(world.of(ConnectionReady) or world.of(ConnectionClosed)), seconds=5)
    world.run(seconds=0.1)
    assert closed(world) == (["tls_alert"] if alert else [])
    assert len(world.of(ConnectionReady)) == (0 if alert else 1)
    if alert:
        assert client.quic._close_event.error_code == 0x100 + alert


def test_goaway_finishes_what_runs_and_then_closes() -> None:
    world = World(Link(latency=0.01))
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead)))
    world.endpoint.goaway(1)
    world.endpoint.goaway(1)
    world.run(seconds=1)
    assert closed(world) == []
    world.endpoint.respond(1, 0, 200, [], b"done")
    assert world.run(lambda: client.closed is not None, seconds=2)
    assert client.answers[0].ended
    assert client.closed.error_code == 0x100
    assert closed(world) == [""]


def test_what_had_come_of_a_stream_that_is_refused_is_dropped() -> None:
    """A head too large for one packet, all of which is there before the first part of it is read."""
    world = World(Link(latency=0.01), limits=EngineLimits(header_bytes=2048))
    client = world.connect()
    assert world.run(lambda: client.ready)
    world.run(seconds=1)
    client.request(headers=[(b"x-large", b"y" * 3000)])
    flight = [Datagram(data, client.address, SERVER) for data, _ in client.quic.datagrams_to_send(world.now)]
    assert len(flight) > 1
    world._events(world.endpoint.receive(flight, world.now))
    world.run(seconds=1)
    assert [event.status for event in world.of(Rejected)] == [431]
    assert dict(client.answers[0].headers)[b":status"] == b"431"
    client.request()
    assert world.run(lambda: bool(world.of(RequestHead)))
    assert closed(world) == []


@pytest.mark.parametrize("busy", [False, True])
def test_close_is_told_once(busy: bool) -> None:
    world = World()
    client = world.connect()
    if busy:
        client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead if busy else ConnectionReady)))
    world.endpoint.close(1, Reset.INTERNAL)
    world.endpoint.close(1, Reset.INTERNAL)
    world.run(seconds=5)
    assert closed(world) == ["internal_error"]
    assert client.closed.error_code == 0x102
    assert world.endpoint.connections == 0
    world.endpoint.respond(1, 0, 200, [], b"")
    assert world.endpoint.send_data(1, 0, b"x", end=True) == 0


def test_only_connections_with_something_to_do_are_visited() -> None:
    world = World()
    for number in range(20):
        client = world.connect(Client(address=("198.51.100.1", number + 1)))
        assert world.run(lambda: client.ready)  # noqa: B023  # run within the turn
    world.run(seconds=1)
    visited = []
    for state in world.endpoint._by_handle.values():
        state.transport.datagrams_to_send = lambda _now, handle=state.handle: visited.append(handle) or []
    world.endpoint.goaway(7)
    world.endpoint.take_datagrams(world.now)
    assert visited == [7]
    assert len(world.endpoint._heap) <= 60


def test_frames_that_fill_more_than_one_packet_all_leave_at_once() -> None:
    """Three hundred cuts take three packets or four: none waits for an acknowledgement of the others."""
    world = World(Link(latency=0.02), EngineLimits(streams=300))
    client = world.connect()
    client.on_ready = lambda: [client.request(method=b"POST", end=False) for _ in range(300)]
    assert world.run(lambda: len(world.of(RequestHead)) == 300)
    world.run(seconds=0.5)
    for event in world.of(RequestHead):
        world.endpoint.reset(1, event.stream, Reset.CANCEL)
    sent = world.endpoint.take_datagrams(world.now)
    assert 3 <= len(sent) <= 5
    streams = world.endpoint._by_handle[1].transport._streams.values()
    assert not [stream for stream in streams if stream.receiver.stop_pending or stream.sender.reset_pending]


@pytest.mark.parametrize(
    "wrong",
    [{"max_datagram_size": 1199}, {"congestion_control": "bbr"}, {"idle_timeout": 0}, {"handshakes": 0}, {"max_datagram_size": 70000}],
)
def test_settings_that_can_t_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuicSettings(**wrong)


def test_a_peer_that_takes_only_small_datagrams_gets_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(settings=QuicSettings(max_datagram_size=1400))
    client = Client()
    original = connection_module.push_quic_transport_parameters

    def push(buf, parameters) -> None:
        parameters.max_udp_payload_size = 1250
        original(buf, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(connection_module, "push_quic_transport_parameters", push)
        world.connect(client)
    assert world.run(lambda: client.ready)
    assert world.endpoint._by_handle[1].transport._max_datagram_size == 1250

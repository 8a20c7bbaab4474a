"""What every QUIC engine does alike, by the seam alone: connections, TLS by SNI, client certificates, requests, the end of connections."""

import gc
import random
import weakref
from types import SimpleNamespace

import pytest
from aioquic.quic import connection as connection_module
from aioquic.tls import Epoch

from balancer.affinity import connection_key
from balancer.quic_lb import Codec, Layout
from proxy.engine import choice
from proxy.engine.events import (
    ConnectionClosed,
    ConnectionReady,
    Drained,
    PathChanged,
    Rejected,
    RequestBody,
    RequestEnd,
    RequestHead,
    StreamReset,
)
from proxy.engine.quic.abuse import RESET_BURST
from proxy.engine.quic.ids import Routable
from proxy.engine.quic.resets import BURST
from proxy.engine.quic.settings import CONGESTION_CONTROLS, QuicSettings
from proxy.engine.seam import HIGH_WATER, Datagram, Endpoint, EngineLimits
from proxy.errors import Reset
from proxy.keys import Keyring
from tests.sim import engines
from tests.sim.hostile import Attacker, stream_frame, v, write_packet
from tests.sim.material import material, profile
from tests.sim.packets import JUNK, crypto, initial
from tests.sim.simulator import SERVER, Client, Link, World

PEER = ("203.0.113.9", 999)
ANSWERS = 16  # version negotiations and refusals for one batch of datagrams

pytestmark = pytest.mark.parametrize("engine", engines.parameters())


def closed(world: World) -> list[str]:
    return [event.error for event in world.of(ConnectionClosed)]


def handle_of(world: World) -> int:
    return world.events[0][0]


# Connection IDs


@pytest.mark.parametrize(
    "layout",
    [Layout(0, 8, 10, slot=True), Layout(3, 8, 8, key=bytes(16)), Layout(6, 2, 5, key=bytes(16), length_in_first=False)],
    ids=["in clear", "one block", "four passes"],
)
def test_connection_ids_are_of_the_form_that_a_balancer_routes_by(engine, layout) -> None:
    server_id = bytes(range(layout.server_id_bytes))
    world = World(engine=engine, settings=QuicSettings(routable=Routable(layout, server_id)))
    client = world.connect()
    seen = set()
    assert world.run(lambda: client.quic._handshake_confirmed and bool(client.quic._peer_cid_available))
    for _ in range(20):
        seen |= {entry.cid for entry in (client.quic._peer_cid, *client.quic._peer_cid_available)}
        client.quic.change_connection_id()
        assert world.run(lambda: bool(client.quic._peer_cid_available), seconds=5)
        world.run(seconds=0.05)
    decoded = [Codec(layout).decode(cid) for cid in seen]
    assert len(decoded) > 20
    assert {parts.server_id for parts in decoded} == {server_id}
    assert len({parts.nonce for parts in decoded}) == len(decoded)
    assert not closed(world)


def test_a_client_of_an_earlier_life_hears_a_stateless_reset(engine) -> None:
    world = World(engine=engine)
    client = world.connect()
    assert world.run(lambda: client.quic._handshake_confirmed and bool(client.quic._peer_cid_available))
    cids = {entry.cid: entry.stateless_reset_token for entry in (client.quic._peer_cid, *client.quic._peer_cid_available)}
    again = World(engine=engine)  # with the same secret
    for cid, token in cids.items():
        packet = b"\x41" + cid + bytes(30)
        again.inject(packet)
        [answer] = again.endpoint.take_datagrams(0.0)
        assert answer.peer == PEER
        assert 21 <= len(answer.data) < len(packet)
        assert answer.data[-16:] == token
        assert answer.data[0] & 0xC0 == 0x40
    assert again.endpoint.resets_sent == len(cids) > 1
    assert (again.endpoint.dropped, again.endpoint.connections) == (0, 0)


def test_stateless_resets_are_smaller_than_what_they_answer_and_few(engine) -> None:
    world = World(engine=engine)
    for size, answered in ((21, None), (22, 21), (30, 29), (43, 42), (1200, 42)):
        world.inject(b"\x40" + bytes(size - 1))
        assert [len(answer.data) for answer in world.endpoint.take_datagrams(0.0)] == ([answered] if answered else [])
    world.endpoint.receive([Datagram(b"\x40" + bytes(50), PEER, SERVER)] * (ANSWERS + 5), 0.0)
    assert len(world.endpoint.take_datagrams(0.0)) == ANSWERS
    assert world.endpoint.dropped == 6
    for _ in range(BURST):
        world.inject(b"\x40" + bytes(50))
        world.endpoint.take_datagrams(0.0)
    assert world.endpoint.resets_sent == BURST
    later = world.endpoint.receive([Datagram(b"\x40" + bytes(50), PEER, SERVER)], 1.0)
    assert later == []
    assert world.endpoint.resets_sent == BURST + 1


def test_who_is_of_another_server_hears_no_stateless_reset(engine) -> None:
    layout = Layout(1, 2, 5, key=bytes(16))
    world = World(engine=engine, settings=QuicSettings(routable=Routable(layout, b"us")))
    codec = Codec(layout)
    for cid, answers in ((codec.encode(b"us", b"12345"), 1), (codec.encode(b"no", b"12345"), 0), (b"\xe7" + bytes(7), 0)):
        world.inject(b"\x40" + cid + bytes(40))
        assert len(world.endpoint.take_datagrams(0.0)) == answers


# What makes a connection, and what does not


def test_it_is_an_endpoint(engine) -> None:
    endpoint: Endpoint = engine.load()(lambda _: None, EngineLimits(), QuicSettings(), Keyring.alone(b"s" * 16))
    assert (endpoint.version, endpoint.connections, endpoint.deadline()) == ("HTTP/3", 0, None)


def test_it_takes_every_congestion_control_that_it_offers(engine) -> None:
    offered = ("auto", *choice.find("quic", engine.name).congestion_controls)
    assert set(offered) <= set(CONGESTION_CONTROLS)
    for name in offered:
        world = World(settings=QuicSettings(congestion_control=name), engine=engine)
        client = world.connect()
        assert world.run(lambda: client.ready, seconds=5)  # noqa: B023  # run within the turn


@pytest.mark.parametrize("name", JUNK)
def test_junk_makes_no_connection_and_no_answer(engine, name: str) -> None:
    world = World(engine=engine)
    world.inject(JUNK[name])
    assert world.endpoint.connections == 0
    assert world.endpoint.dropped == 1
    assert world.endpoint.take_datagrams(0.0) == []
    assert world.events == []


def test_random_bytes_never_raise(engine) -> None:
    world = World(engine=engine, settings=QuicSettings(handshake_timeout=0.5))
    rng = random.Random(5)
    good = initial(b"d" * 8, crypto(0, b"\1\0\1\0"))
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(40)] = rng.randrange(256)
        world.inject(bytes(data))
        world.inject(rng.randbytes(rng.randrange(1500)))
    world.run(seconds=4)
    assert world.endpoint.connections == 0
    assert world.endpoint.handshakes == 0


def test_version_negotiation_is_answered_smaller_and_not_without_end(engine) -> None:
    world = World(engine=engine)
    hello = b"\xc0\x0a\x0a\x0a\x0a\xff" + bytes(255) + b"\xff" + b"s" * 255 + bytes(900)
    told = world.endpoint.receive([Datagram(hello, PEER, SERVER)] * (ANSWERS + 5), 0.0)
    answers = world.endpoint.take_datagrams(0.0)
    assert told == []
    assert len(answers) == ANSWERS
    assert world.endpoint.dropped == 5
    assert len(answers[0].data) < len(hello)
    assert answers[0].data[1:262] == bytes(4) + b"\xff" + b"s" * 255 + b"\xff"
    assert answers[0].data[:1] >= b"\xc0"
    offered = answers[0].data[262 + 255 :]
    assert b"\0\0\0\1" in [offered[at : at + 4] for at in range(0, len(offered), 4)]
    world.inject(hello[:1100])
    assert world.endpoint.take_datagrams(0.0) == []


def test_a_client_that_offers_only_another_version_first_ends_on_ours(engine) -> None:
    world = World(engine=engine)
    client = world.connect(Client(original_version=0x5A6A7A8A, supported_versions=[0x5A6A7A8A, 1]))
    assert world.run(lambda: client.ready, seconds=5)


def test_version_2_is_spoken_or_negotiated_away(engine) -> None:
    world = World(engine=engine)
    client = world.connect(Client(original_version=0x6B3343CF, supported_versions=[0x6B3343CF, 1]))
    assert world.run(lambda: client.ready, seconds=5)
    assert client.quic._version == (0x6B3343CF if engine.version_2 else 1)


@pytest.mark.parametrize("why", ["admit", "draining", "full"])
def test_refused_connections_are_told_so(engine, why: str) -> None:
    asked = []
    world = World(
        settings=QuicSettings(connections=1) if why == "full" else None,
        engine=engine,
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


def test_handshakes_in_progress_are_bounded_and_time_out(engine) -> None:
    world = World(settings=QuicSettings(retry="never", handshakes=10, handshake_timeout=0.5), engine=engine)
    for number in range(15):
        world.inject(initial(b"dest%04d" % number, crypto(0, b"\1\0\1\0")))
    assert (world.endpoint.handshakes, world.endpoint.connections, world.endpoint.dropped) == (10, 10, 5)
    world.run(lambda: len(closed(world)) == 10, seconds=2)
    assert world.now >= 0.45
    assert closed(world) == ["handshake_timeout"] * 10
    assert (world.endpoint.handshakes, world.endpoint.connections) == (0, 0)
    client = world.connect()
    assert world.run(lambda: client.ready)


@pytest.mark.parametrize("how", ["in order", "sparse"])
def test_a_client_hello_without_end_is_cut(engine, how: str) -> None:
    """TLS allows 16 MB, and nobody knows the client yet."""
    world = World(engine=engine)
    sent = 0
    for number in range(200):
        offset = number * 1000 if how == "in order" or not number else engine.handshake_bytes - 2000 + number * 1000
        world.inject(initial(b"d" * 8, crypto(offset, (b"\1\xff\xff\xff" if not number else b"") + bytes(1000)), number=number))
        sent += 1000
        if world.of(ConnectionClosed):
            break
    assert closed(world) in (["crypto_buffer_exceeded"], ["protocol_violation"])  # by QUIC, or by TLS that does not take so long a message
    assert sent <= engine.handshake_bytes


# TLS


@pytest.mark.parametrize("first", [0xD0, 0xE0, 0xC0], ids=["0-RTT", "Handshake", "Initial"])
def test_packets_without_a_key_cost_those_behind_them_nothing(engine, first: int) -> None:
    """RFC 9000, section 12.2: as in the farewell of a client that does not know yet whether its handshake is confirmed."""
    attacker = Attacker(engine=engine)
    quic = attacker.client.quic
    cids = b"".join(bytes((len(cid),)) + cid for cid in (quic._peer_cid.cid, quic.host_cid))
    keyless = bytes((first,)) + v(1).rjust(4, b"\0") + cids + (b"\0" if first == 0xC0 else b"") + v(1200) + bytes(1200)
    (farewell,) = write_packet(quic, v(0x1D, 0x100, 0))
    world = attacker.world
    world._events(world.endpoint.receive([Datagram(keyless + farewell, attacker.client.address, SERVER)], world.now))
    world.clients.clear()
    assert world.run(lambda: closed(world) == [""], seconds=3)
    assert world.run(lambda: world.endpoint.connections == 0, seconds=3)


def test_the_certificate_is_chosen_by_sni(engine) -> None:
    world = World(engine=engine)
    world.profiles["b.example"] = profile("b.example")
    for name in ("a.example", "b.example"):
        client = world.connect(Client(name, (name + ".test", 1)))
        client.address = ("198.51.100.7", 1 + len(world.clients))
        assert world.run(lambda: client.ready), client.closed  # noqa: B023  # run within the turn
        world.run(seconds=0.1)
    assert [(event.sni, event.tls_profile) for event in world.of(ConnectionReady)] == list(world.profiles.items())


def test_what_was_parsed_of_a_profile_is_forgotten_with_it(engine) -> None:
    world = World(engine=engine)
    old = weakref.ref(world.profiles["a.example"])
    for number in range(1, 4):
        client = world.connect(Client(address=("198.51.100.1", number)))
        assert world.run(lambda: client.ready)  # noqa: B023  # run within the turn
    world.events.clear()
    world.profiles["a.example"] = profile("a.example")
    client = world.connect(Client(address=("198.51.100.2", 1)))
    assert world.run(lambda: client.ready)
    for client in world.clients:
        client.quic.close()
    world.run(lambda: not world.endpoint.connections, seconds=10)
    world.events.clear()
    gc.collect()
    assert old() is None


@pytest.mark.parametrize(("name", "alpn", "alert"), [("c.example", ["h3"], 112), ("a.example", ["hq"], 120)])
def test_unknown_names_and_protocols_are_refused(engine, name: str, alpn: list[str], alert: int) -> None:
    world = World(engine=engine)
    client = world.connect(Client(name, alpn_protocols=alpn))
    world.run(lambda: client.closed is not None and not world.endpoint.connections, seconds=10)
    assert client.closed.error_code == 0x100 + alert
    assert closed(world) == ["tls_alert"]
    assert world.endpoint.connections == 0


def test_sni_is_compared_in_lower_case_without_the_root_and_may_be_absent(engine) -> None:
    seen = []
    world = World(engine=engine, select=lambda sni: seen.append(sni) or world.profiles["a.example"])
    for number, name in enumerate(["A.Example", "a.example.", "192.0.2.1"], 1):
        client = world.connect(Client(name, ("198.51.100.1", number), verify_mode=0))
        assert world.run(lambda: client.ready)  # noqa: B023  # run within the turn
    assert seen == ["a.example", "a.example", None]
    world.run(seconds=0.1)
    assert [event.sni for event in world.of(ConnectionReady)] == seen


RULES = {
    "none, required": (None, True, "required"),
    "none, optional": (None, False, None),
    "good": ("client", True, None),
    "of a stranger": ("stranger", False, "stranger"),
    "not for clients": ("server", True, "purpose"),
}


@pytest.mark.parametrize("name", RULES)
def test_client_certificates(engine, name: str) -> None:
    shown, required, why = RULES[name]
    alert = {"required": 116, "stranger": engine.unknown_authority, "purpose": engine.wrong_purpose}.get(why)
    world = World(engine=engine)
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


# Requests


def test_the_connection_is_told_ready_before_its_requests_and_closed_once(engine) -> None:
    world = World(engine=engine)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], b"12345")
    client = world.connect()
    client.on_ready = lambda: client.request(b"/5")
    assert world.run(lambda: any(answer.ended for answer in client.answers.values()))
    ready = world.of(ConnectionReady)
    assert [(one.sni, one.alpn, one.peer, one.tls_profile) for one in ready] == [
        ("a.example", "h3", client.address, world.profiles["a.example"])
    ]
    assert ready[0].affinity == connection_key(b"s" * 16, client.quic.original_destination_connection_id)
    assert isinstance(world.events[0][1], ConnectionReady)
    client.quic.close(error_code=0x100)
    world.run(lambda: not world.endpoint.connections, seconds=5)
    assert [(event.error, event.detail) for event in world.of(ConnectionClosed)] == [("", "")]
    assert world.endpoint.connections == 0
    assert world.endpoint.deadline() is None


def test_a_response_has_its_informational_its_body_and_its_trailers(engine) -> None:
    world = World(engine=engine)

    def serve(handle, event) -> None:
        if isinstance(event, RequestHead):
            world.endpoint.inform(handle, event.stream, 103, [(b"link", b"</x>")])
            world.endpoint.send_head(handle, event.stream, 200, [(b"x-method", event.method)], end=False)
            world.endpoint.send_data(handle, event.stream, b"one", end=False)
            world.endpoint.send_data(handle, event.stream, b"two", end=False)
            world.endpoint.send_trailers(handle, event.stream, [(b"x-sum", b"6")])

    world.serve = serve
    client = world.connect()
    client.on_ready = lambda: [client.request(), client.request(method=b"HEAD")]
    assert world.run(lambda: len(client.answers) == 2 and all(answer.ended for answer in client.answers.values()))
    answer, bodiless = client.answers[0], client.answers[4]
    assert (answer.informational, answer.headers) == (
        [[(b":status", b"103"), (b"link", b"</x>")]],
        [(b":status", b"200"), (b"x-method", b"GET")],
    )
    assert (bytes(answer.body), answer.trailers) == (b"onetwo", [(b"x-sum", b"6")])
    assert (bodiless.status, bytes(bodiless.body), bodiless.trailers) == (200, b"", [])


def test_a_request_has_its_body_and_its_trailers(engine) -> None:
    world = World(engine=engine)
    client = world.connect()

    def go() -> None:
        stream = client.request(method=b"POST", headers=[(b"content-length", b"5")], body=b"12345", end=False)
        client.http.send_headers(stream, [(b"x-sum", b"5")], end_stream=True)

    client.on_ready = go
    assert world.run(lambda: bool(world.of(RequestEnd)))
    assert [(head.method, head.content_length, head.end) for head in world.of(RequestHead)] == [(b"POST", 5, False)]
    assert b"".join(event.data for event in world.of(RequestBody)) == b"12345"
    assert world.of(RequestEnd) == [RequestEnd(0, [(b"x-sum", b"5")])]


HEAD = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/")]
MALFORMED = {
    "no path": (HEAD[:3], 400),
    "upper case": ([*HEAD, (b"X-A", b"b")], 400),
    "connection": ([*HEAD, (b"connection", b"x")], 400),
    "connect": ([(b":method", b"CONNECT"), (b":authority", b"a.example:443")], 501),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_head_costs_its_stream_only(engine, name: str) -> None:
    fields, status = MALFORMED[name]
    world = World(engine=engine)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], b"")
    client = world.connect()
    assert world.run(lambda: client.ready)
    stream = client.request()
    client.http.send_headers(client.quic.get_next_available_stream_id(), fields, end_stream=True)
    assert world.run(lambda: bool(world.of(Rejected)) and client.answers[stream].ended)
    assert [event.status for event in world.of(Rejected)] == [status]
    assert client.request() == 8
    assert world.run(lambda: client.answers[8].ended)
    assert closed(world) == []


def test_what_had_come_of_a_stream_that_is_refused_is_dropped(engine) -> None:
    """A head too large for one packet, all of which is there before the first part of it is read."""
    world = World(Link(latency=0.01), limits=EngineLimits(header_bytes=2048), engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready)
    world.run(seconds=0.2)
    client.request(headers=[(b"x-large", b"y" * 3000)])
    flight = [Datagram(data, client.address, SERVER) for data, _ in client.quic.datagrams_to_send(world.now)]
    assert len(flight) > 1
    world._events(world.endpoint.receive(flight, world.now))
    world.run(seconds=0.2)
    assert [event.status for event in world.of(Rejected)] == [431]
    assert dict(client.answers[0].headers)[b":status"] == b"431"
    client.request()
    assert world.run(lambda: bool(world.of(RequestHead)))
    assert closed(world) == []


def test_a_body_that_nobody_consumes_stops_at_the_window(engine) -> None:
    """What an engine keeps to itself of the window, it does not hand over."""
    world = World(limits=EngineLimits(stream_window=65536), engine=engine)
    client = world.connect()
    client.on_ready = lambda: client.request(b"/", b"POST", body=bytes(300_000))

    def got() -> int:
        return sum(len(event.data) for event in world.of(RequestBody))

    world.run(got, seconds=5)
    world.run(seconds=0.5)
    first = got()
    assert 16_000 < first <= 65536
    world.endpoint.consumed(handle_of(world), 0, first)
    world.run(lambda: got() > first, seconds=5)
    world.run(seconds=0.5)
    assert 32_000 < got() <= 65536 + first


def test_a_reader_that_stops_holds_its_source_and_not_its_neighbours(engine) -> None:
    world = World(engine=engine)
    queued = []

    def serve(handle, event) -> None:
        if isinstance(event, RequestHead) and event.path == b"/large":
            world.endpoint.send_head(handle, event.stream, 200, [], end=False)
            queued.append(world.endpoint.send_data(handle, event.stream, bytes(1_000_000), end=False))
        elif isinstance(event, RequestHead):
            world.endpoint.respond(handle, event.stream, 200, [], b"small")

    world.serve = serve
    client = Client(max_stream_data=65536)
    world.connect(client)
    client.quic._write_stream_limits = lambda *_, **__: None  # it never reads on
    streams: list[int] = []
    client.on_ready = lambda: streams.extend([client.request(b"/large"), client.request(b"/small")])
    assert world.run(lambda: bool(streams) and client.answers[streams[1]].ended, seconds=5)
    assert len(client.answers[streams[0]].body) <= 65536
    assert queued[0] > HIGH_WATER
    assert not world.of(Drained)


def test_a_source_that_stopped_at_high_water_is_told_to_go_on(engine) -> None:
    world = World(Link(latency=0.002), engine=engine)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead)))
    handle = handle_of(world)
    world.endpoint.send_head(handle, 0, 200, [], end=False)
    assert world.endpoint.send_data(handle, 0, bytes(500_000), end=False) > HIGH_WATER
    assert world.run(lambda: world.of(Drained) == [Drained(0)], seconds=10)
    world.endpoint.send_data(handle, 0, b"end", end=True)
    assert world.run(lambda: client.answers[0].ended, seconds=10)
    assert bytes(client.answers[0].body) == bytes(500_000) + b"end"


def test_a_stream_that_is_reset_is_told_to_the_client(engine) -> None:
    world = World(engine=engine)
    client = world.connect()
    client.on_ready = lambda: client.request(method=b"POST", end=False)
    assert world.run(lambda: bool(world.of(RequestHead)))
    world.endpoint.reset(handle_of(world), 0, Reset.INTERNAL)
    assert world.run(lambda: client.answers[0].reset is not None, seconds=5)
    assert client.answers[0].reset == 0x102
    assert closed(world) == []


@pytest.mark.parametrize("link", [Link(latency=0.002, loss=0.05, seed=5), Link(latency=0.002, jitter=0.01)], ids=["loss", "reordering"])
def test_lossy_and_reordering_links_end_with_the_right_bytes(engine, link: Link) -> None:
    world = World(link, engine=engine)
    body = random.Random(7).randbytes(300_000)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    client = world.connect()
    client.on_ready = lambda: [client.request() for _ in range(3)]
    assert world.run(lambda: len(client.answers) == 3 and all(answer.ended for answer in client.answers.values()), seconds=60)
    assert all(bytes(answer.body) == body for answer in client.answers.values())
    assert closed(world) == []


def test_a_client_that_rebinds_in_mid_download_ends_with_the_right_bytes(engine) -> None:
    """The NAT gives the client another port: the path is validated, told, and the connection is the same one."""
    world = World(Link(latency=0.005), engine=engine)
    body = random.Random(9).randbytes(900_000)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(client.answers) and len(client.answers[0].body) > 200_000, seconds=20)
    client.address = ("198.51.100.7", 5555)
    assert world.run(lambda: client.answers[0].ended, seconds=20)
    assert bytes(client.answers[0].body) == body
    assert [event.peer for event in world.of(PathChanged)] == [("198.51.100.7", 5555)]
    assert len({handle for handle, _ in world.events}) == 1
    assert closed(world) == []


# The end


def test_an_idle_connection_ends_cleanly(engine) -> None:
    world = World(settings=QuicSettings(idle_timeout=0.5), engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready)
    world.clients.clear()  # it went away without a word
    world.run(lambda: bool(closed(world)), seconds=5)
    assert [(event.error, event.detail) for event in world.of(ConnectionClosed)] == [("", "idle")]
    assert world.endpoint.connections == 0


@pytest.mark.parametrize(
    ("keep_alive", "also_idle", "asks", "kept"),
    [(0.0, False, True, False), (0.2, False, True, True), (0.2, False, False, False), (0.2, True, False, True)],
    ids=["off", "a request", "no request", "no request, always"],
)
def test_a_silent_client_is_kept_by_pings(engine, keep_alive: float, also_idle: bool, asks: bool, kept: bool) -> None:
    settings = QuicSettings(idle_timeout=0.6, keep_alive=keep_alive, keep_alive_idle=also_idle)
    world = World(settings=settings, engine=engine)
    world.serve = lambda handle, event: (
        world.endpoint.respond(handle, event.stream, 200, [], b"ok") if isinstance(event, RequestHead) and event.path == b"/now" else None
    )
    client = world.connect()
    client.on_ready = lambda: client.request(b"/late" if asks else b"/now")
    assert world.run(lambda: bool(world.of(RequestHead)))
    world.run(seconds=2.0)
    assert closed(world) == ([] if kept else [""])
    if kept and asks:
        world.endpoint.respond(handle_of(world), 0, 200, [], b"late")
        assert world.run(lambda: client.answers[0].ended, seconds=1)
        world.run(lambda: bool(closed(world)), seconds=2)
        assert closed(world) == [""]  # nothing in progress: idle


@pytest.mark.parametrize("also_idle", [False, True])
def test_pings_do_not_keep_a_client_that_is_gone(engine, also_idle: bool) -> None:
    """The first one that it does not answer begins the last idle timeout; those behind it prolong nothing."""
    world = World(settings=QuicSettings(idle_timeout=0.6, keep_alive=0.2, keep_alive_idle=also_idle), engine=engine)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead)))
    world.run(seconds=0.1)
    world.clients.clear()  # it went away without a word
    began, sent = world.now, world.sent
    assert world.run(lambda: bool(closed(world)), seconds=5)
    assert 0.5 < world.now - began < 1.2
    assert [(event.error, event.detail) for event in world.of(ConnectionClosed)] == [("", "idle")]
    assert 0 < world.sent - sent < 12
    assert world.endpoint.connections == 0


def test_who_sends_is_sent_no_pings(engine) -> None:
    world = World(settings=QuicSettings(idle_timeout=5, keep_alive=0.2, keep_alive_idle=True), engine=engine)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead)))
    world.run(seconds=0.1)
    for _ in range(10):
        client.quic.send_ping(0)
        world.run(seconds=0.1)
    sent = world.sent
    world.run(seconds=0.1)
    assert world.sent == sent


def test_goaway_finishes_what_runs_and_then_closes(engine) -> None:
    world = World(Link(latency=0.01), engine=engine)
    client = world.connect()
    client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead)))
    handle = handle_of(world)
    world.endpoint.goaway(handle)
    world.endpoint.goaway(handle)
    world.run(seconds=0.5)
    assert closed(world) == []
    world.endpoint.respond(handle, 0, 200, [], b"done")
    assert world.run(lambda: client.closed is not None, seconds=5)
    assert client.answers[0].ended
    assert client.closed.error_code == 0x100
    assert closed(world) == [""]


@pytest.mark.parametrize("busy", [False, True])
def test_close_is_told_once(engine, busy: bool) -> None:
    world = World(engine=engine)
    client = world.connect()
    if busy:
        client.on_ready = client.request
    assert world.run(lambda: bool(world.of(RequestHead if busy else ConnectionReady)))
    handle = handle_of(world)
    world.endpoint.close(handle, Reset.INTERNAL)
    world.endpoint.close(handle, Reset.INTERNAL)
    world.run(lambda: client.closed is not None and not world.endpoint.connections, seconds=5)
    assert closed(world) == ["internal_error"]
    assert client.closed.error_code == 0x102
    assert world.endpoint.connections == 0
    world.endpoint.respond(handle, 0, 200, [], b"")
    assert world.endpoint.send_data(handle, 0, b"x", end=True) == 0


def test_a_peer_that_takes_only_small_datagrams_gets_small_ones(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(settings=QuicSettings(max_datagram_size=1400), engine=engine)
    world.serve = lambda handle, event: (
        isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], bytes(50_000))
    )
    client = Client()
    original = connection_module.push_quic_transport_parameters

    def push(buf, parameters) -> None:
        parameters.max_udp_payload_size = 1250
        original(buf, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(connection_module, "push_quic_transport_parameters", push)
        world.connect(client)
    client.on_ready = client.request
    sizes = []
    receive = client.quic.receive_datagram
    client.quic.receive_datagram = lambda data, *rest: sizes.append(len(data)) or receive(data, *rest)
    assert world.run(lambda: bool(client.answers) and client.answers[0].ended, seconds=10)
    larger = [size for size in sizes if size > 1250]
    assert len(larger) <= engine.probes
    assert len(sizes) > 40


# Hostile packets


def test_streams_over_the_limit_can_t_be_opened(engine) -> None:
    attacker = Attacker(EngineLimits(streams=7), engine=engine)
    attacker.frames(stream_frame(4 * 6, 0, b"\x01"))
    assert not attacker.closed
    attacker.frames(stream_frame(4 * 7, 0, b"\x01"))
    assert closed(attacker.world) == ["stream_limit_error"]


def test_bytes_beyond_the_window_end_the_connection(engine) -> None:
    attacker = Attacker(EngineLimits(stream_window=65536, connection_window=131072), engine=engine)
    attacker.frames(stream_frame(0, 65536, b"x"))
    assert closed(attacker.world) == ["flow_control_error"]


def test_unknown_frames_end_the_connection(engine) -> None:
    attacker = Attacker(engine=engine)
    attacker.frames(v(0x40))
    assert closed(attacker.world) == ["frame_encoding_error"]


def test_resets_that_we_ask_for_are_free(engine) -> None:
    """Uploads that are answered before their end, one after the other: the client resets each because it is told to stop."""
    world = World(Link(latency=0.0002), engine=engine)
    world.serve = lambda handle, event: (
        world.endpoint.respond(handle, event.stream, 413, [], b"no") if isinstance(event, RequestHead) else None
    )
    client = world.connect()
    assert world.run(lambda: client.ready)
    for _ in range(RESET_BURST // 10 + 10):
        streams = [client.request(method=b"POST", end=False) for _ in range(10)]
        assert world.run(lambda: all(client.answers[stream].stopped for stream in streams) or closed(world), seconds=2)  # noqa: B023
        world.run(seconds=0.002)
    assert not closed(world)
    assert [answer.status for answer in client.answers.values()] == [413] * (RESET_BURST + 100)


@pytest.mark.parametrize("stop", [False, True], ids=["reset", "stop"])
def test_rapid_resets_are_cut(engine, stop: bool) -> None:
    """Request, then cancel, again and again (CVE-2023-44487): hardly more requests than the budget reach the application."""
    world = World(Link(latency=0.0005), engine=engine)
    client = world.connect()
    assert world.run(lambda: client.ready)
    for _ in range(RESET_BURST):
        streams = [client.request(end=False) for _ in range(10)]
        seen = len(world.of(RequestHead))
        world.run(lambda: len(world.of(RequestHead)) == seen + 10 or closed(world), seconds=1)  # noqa: B023  # run within the turn
        for stream in streams:
            if stop:
                client.quic.stop_stream(stream, 0x10C)
            client.quic.reset_stream(stream, 0x10C)
        cut = len(world.of(StreamReset))
        world.run(lambda: len(world.of(StreamReset)) == cut + 10 or closed(world), seconds=1)  # noqa: B023  # run within the turn
        if closed(world):
            break
    assert closed(world) == ["excessive_load"]
    assert len(world.of(RequestHead)) <= 2 * RESET_BURST


# Keys


def following(world: World, *, updates: bool) -> tuple[Client, list[str]]:
    """A client that downloads until told otherwise, and the keys that it renews; with *updates* it begins such renewals as well."""
    body = bytes(range(256)) * 4000
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], body)
    client, told, since = Client(), [], [0]

    def log(kind: str, trigger: str) -> None:
        told.append(f"{kind} {trigger}")
        since[0] = client.quic._packet_number

    def update(_: int) -> None:
        spaces = client.quic._spaces
        if updates and len(told) < 16:
            client.quic.send_ping(0)  # what it sends is to be acknowledged
            if spaces[Epoch.ONE_RTT].largest_acked_packet > since[0]:
                client.quic.request_key_update()

    def again(stream: int) -> None:
        assert bytes(client.answers[stream].body) == body
        client.request()

    client.quic._log_key_updated, client.on_data, client.on_end = log, update, again
    client.on_ready = client.request
    world.connect(client)
    return client, told


def test_keys_are_renewed_before_they_are_worn(engine) -> None:
    """RFC 9001, section 6.6. With them every 200 packets, the client follows several times, in the middle of what it downloads."""
    world = World(engine=engine, settings=QuicSettings(key_packets=200))
    client, told = following(world, updates=False)
    assert world.run(lambda: told.count("server_1rtt_secret remote_update") >= 4, seconds=20), told
    assert client.closed is None
    assert not closed(world)


def test_both_ends_renew_keys_at_once(engine) -> None:
    world = World(engine=engine, settings=QuicSettings(key_packets=60))
    client, told = following(world, updates=True)

    def renewed(by: str) -> bool:
        return told.count(f"server_1rtt_secret {by}_update") >= 2

    assert world.run(lambda: renewed("local") and renewed("remote"), seconds=20), told
    assert client.closed is None
    assert not closed(world)


def test_keys_are_renewed_no_sooner_than_the_client_has_acknowledged_the_present_ones(engine) -> None:
    """RFC 9001, section 6.1: however few packets they are to be used for."""
    world = World(engine=engine, settings=QuicSettings(key_packets=1))
    client, told = following(world, updates=False)
    assert world.run(lambda: bool(client.answers) and client.answers[0].ended, seconds=20), told
    remote = told.count("server_1rtt_secret remote_update")
    assert 1 <= remote < client.quic._spaces[Epoch.ONE_RTT].expected_packet_number // 2
    assert not closed(world)

"""How a client comes in, on every QUIC engine: Retry and its tokens, the bounds on handshakes, what an address that is proven is sent."""

from types import SimpleNamespace

import pytest

from balancer.affinity import connection_key
from balancer.quic_lb import Codec, Layout
from proxy.engine.events import ConnectionClosed, ConnectionReady, RequestHead
from proxy.engine.quic.gate import network_of
from proxy.engine.quic.ids import Routable
from proxy.engine.quic.packets import read_long_header
from proxy.engine.quic.retry import LIFETIME, SKEW, TOKEN_BYTES
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram
from tests.sim import engines
from tests.sim.packets import crypto, initial
from tests.sim.simulator import SERVER, Client, Link, World

PEER = ("203.0.113.9", 999)
ANSWERS = 16  # version negotiations, Retry packets, refusals and resets for one batch of datagrams
HELLO = crypto(0, b"\1\0\1\0")

pytestmark = pytest.mark.parametrize("engine", engines.parameters())


class Asking(World):
    """A world in which clients have to prove their address, with a clock on the wall."""

    def __init__(self, engine, retry: str = "always", **settings) -> None:
        self.today = 1_700_000_000.0
        super().__init__(engine=engine, settings=QuicSettings(retry=retry, **settings), wall=lambda: self.today)

    def told(self):
        return self.endpoint.first_packets(self.now)

    def tokens(self) -> dict:
        return {result: count for result, count in self.told().tokens.items() if count}

    def say(self, data: bytes, peer=PEER) -> list[bytes]:
        """What comes back for one datagram."""
        self.inject(data, peer)
        return [transmit.data for transmit in self.endpoint.take_datagrams(self.now)]


def asked(world: Asking, original: bytes = b"original", peer=PEER) -> tuple[bytes, bytes]:
    """The token that a client is given, and where to send it."""
    [retry] = world.say(initial(original, HELLO), peer)
    header = read_long_header(retry)
    assert (retry[0] & 0xF0, header.destination) == (0xF0, b"s" * 8)
    return retry[-16 - TOKEN_BYTES : -16], header.source


def is_refused(answers: list[bytes], dcid: bytes) -> bool:
    """One Initial closes the attempt with INVALID_TOKEN."""
    client = Client().quic
    client._original_destination_connection_id = dcid
    [answer] = answers
    assert len(answer) < 100
    client.connect(SERVER, now=0.0)
    client._cryptos_initial[1].setup_initial(cid=dcid, is_client=True, version=1)
    client.host_cid = client._host_cids[0].cid = read_long_header(answer).destination
    client.receive_datagram(answer, SERVER, now=0.0)
    return client._close_event is not None and client._close_event.error_code == 0xB


# Retry


@pytest.mark.parametrize("form", [None, Routable(Layout(1, 1, 4), b"u"), Routable(Layout(0, 8, 10, slot=True), b"12345678")])
def test_a_client_proves_its_address_and_keeps_its_original_id(engine, form) -> None:
    world = Asking(engine, routable=form)
    world.serve = lambda handle, event: isinstance(event, RequestHead) and world.endpoint.respond(handle, event.stream, 200, [], b"12345")
    client = world.connect()
    client.on_ready = lambda: client.request(b"/5")
    assert world.run(lambda: any(answer.ended for answer in client.answers.values()))
    [ready] = world.of(ConnectionReady)
    assert ready.affinity == connection_key(b"s" * 16, client.quic.original_destination_connection_id)
    assert client.quic._retry_count == 1
    assert (world.told().retries, world.told().asking, world.tokens()) == (1, True, {"valid": 1})
    assert world.endpoint.handshakes == 0
    if form is not None:
        assert Codec(form.layout).decode(client.quic._retry_source_connection_id).server_id == form.server_id


def test_a_client_of_version_2_proves_it_too(engine) -> None:
    world = Asking(engine)
    client = world.connect(Client(original_version=0x6B3343CF, supported_versions=[0x6B3343CF, 1]))
    assert world.run(lambda: client.ready, seconds=5)
    assert client.quic._retry_count == 1
    assert client.quic._version == (0x6B3343CF if engine.version_2 else 1)


def test_packets_that_are_lost_on_the_way_are_brought_again(engine) -> None:
    world = Asking(engine, handshake_timeout=30.0)
    world.link = Link(latency=0.02, loss=0.1)
    clients = [world.connect(Client(address=("198.51.100.7", 4000 + number))) for number in range(10)]
    assert world.run(lambda: len(world.of(ConnectionReady)) == len(clients), seconds=30)
    assert {ready.affinity for ready in world.of(ConnectionReady)} == {
        connection_key(b"s" * 16, client.quic.original_destination_connection_id) for client in clients
    }
    assert set(world.tokens()) == {"valid"}


def test_a_retry_keeps_nothing_and_its_token_opens_once_only_at_its_address(engine) -> None:
    world = Asking(engine)
    token, source = asked(world)
    assert (world.endpoint.connections, world.endpoint.deadline(), world.events) == (0, None, [])
    assert is_refused(world.say(initial(source, HELLO, token=token), ("203.0.113.9", 998)), source)
    assert is_refused(world.say(initial(source, HELLO, token=token), ("203.0.113.8", 999)), source)
    assert is_refused(world.say(initial(b"d" * 8, HELLO, token=token)), b"d" * 8)
    assert is_refused(world.say(initial(source, HELLO, token=token[:-1] + bytes([token[-1] ^ 1]))), source)
    assert world.tokens() == {"other_address": 2, "other_connection": 1, "forged": 1}
    assert world.endpoint.connections == 0
    world.inject(initial(source, HELLO, token=token))
    world.inject(initial(source, HELLO, token=token, number=1))
    assert world.endpoint.connections == world.endpoint.handshakes == 1


def test_a_token_expires_by_the_clock_on_the_wall(engine) -> None:
    world = Asking(engine)
    token, source = asked(world)
    packet = initial(source, HELLO, token=token)
    for passed in (LIFETIME + 0.1, -SKEW - 0.1):
        world.today = 1_700_000_000.0 + passed
        assert is_refused(world.say(packet), source)
    world.today = 1_700_000_000.0 + LIFETIME
    world.inject(packet)
    assert (world.endpoint.connections, world.tokens()) == (1, {"expired": 2, "valid": 1})


def test_another_process_with_the_secret_takes_the_token(engine) -> None:
    asking, other = Asking(engine), Asking(engine, "never")
    client = other.connect()
    [first] = [data for data, _ in client.quic.datagrams_to_send(0.0)]
    original = read_long_header(first).destination
    client.quic.receive_datagram(asking.say(first, client.address)[0], SERVER, 0.0)
    assert other.run(lambda: client.ready)
    assert other.run(lambda: bool(other.of(ConnectionReady)))
    assert other.of(ConnectionReady)[0].affinity == connection_key(b"s" * 16, original)
    assert (asking.endpoint.connections, other.tokens()) == (0, {"valid": 1})


def test_any_token_is_read_or_dropped_and_never_raises(engine) -> None:
    world = Asking(engine, handshake_timeout=0.3)
    token, source = asked(world)
    for wrong in (b"x", token[:-1], token + b"x", bytes(TOKEN_BYTES), b"x" * 900):
        assert world.say(initial(source, HELLO, token=wrong))[0][0] & 0xF0 == 0xF0, "it is asked again"
    assert world.tokens() == {"unknown": 5}
    good = initial(b"d" * 8, HELLO, token=b"t" * 70)
    length_at = 6 + 8 + 1 + 8
    assert good[length_at : length_at + 2] == b"\x40\x46"
    dropped = world.endpoint.dropped
    for length in (b"\x7f\xff", b"\xbf\xff\xff\xff", b"\xff" * 8):
        assert world.say(good[:length_at] + length + good[length_at + len(length) :]) == []
    assert world.endpoint.dropped == dropped + 3
    assert world.endpoint.connections == 0


def test_retries_are_few_for_one_batch_and_small(engine) -> None:
    world = Asking(engine)
    flood = [Datagram(initial(b"dest%04d" % number, HELLO), PEER, SERVER) for number in range(ANSWERS + 5)]
    assert world.endpoint.receive(flood, 0.0) == []
    answers = world.endpoint.take_datagrams(0.0)
    assert len(answers) == ANSWERS == world.told().retries
    assert max(len(answer.data) for answer in answers) < 200
    assert (world.endpoint.dropped, world.endpoint.connections) == (5, 0)


def test_who_asks_for_retry_admits_only_who_answers(engine) -> None:
    """Or spoofed packets would use up what limits at accept leave."""
    admitted = []
    world = World(engine=engine, settings=QuicSettings(retry="always"), admit=lambda _, peer: admitted.append(peer) or True)
    for number in range(50):
        world.inject(initial(b"dest%04d" % number, HELLO), (f"192.0.2.{number}", 1))
    assert admitted == []
    client = world.connect()
    assert world.run(lambda: client.ready)
    assert admitted == [client.address]


def test_an_address_that_is_proven_is_sent_the_whole_flight_at_once(engine) -> None:
    """A hello of one datagram brings at most three back, whatever the size of the certificates; not so behind a Retry."""
    sizes = {}
    for retry in ("never", "always"):
        world = Asking(engine, retry)
        world.profiles["a.example"] = long_chain(world.profiles["a.example"])
        client = world.connect()
        flight = [data for data, _ in client.quic.datagrams_to_send(0.0)]
        if retry == "always":
            [answer] = world.say(flight[0], client.address)
            client.quic.receive_datagram(answer, SERVER, 0.0)
            flight = [data for data, _ in client.quic.datagrams_to_send(0.0)]
        sizes[retry] = sum(len(data) for data in world.say(flight[0], client.address)) / len(flight[0])
    assert sizes["never"] <= 3.0
    assert sizes["always"] > 4.0


def long_chain(profile):
    """The same profile with its certificate a dozen times."""
    [once] = profile.certificates
    certificate = SimpleNamespace(chain_pem=once.chain_pem * 12, key_pem=once.key_pem)
    return type(profile)(certificates=(certificate,), client_rule=None)


# Bounds


def test_handshakes_in_progress_of_a_network_are_bounded(engine) -> None:
    world = World(engine=engine, settings=QuicSettings(retry="never", handshakes=20, handshakes_per_network=5, handshake_timeout=0.5))
    for number in range(10):
        for network in ("192.0.2.%d", "2001:db8::%d", "198.51.100.%d"):
            world.inject(initial(b"%08d" % (number * 100 + len(network)), HELLO), (network % (number + 1), 1))
    assert (world.endpoint.handshakes, world.endpoint.dropped) == (15, 15)
    assert world.endpoint.first_packets(0.0).limits_hit == {"handshakes": 0, "handshakes_per_network": 15}
    client = world.connect(Client(address=("192.0.3.1", 1)))
    assert network_of("192.0.3.1") != network_of("192.0.2.1")
    assert world.run(lambda: client.ready)
    world.run(lambda: len(world.of(ConnectionClosed)) == 15, seconds=2)
    again = world.connect(Client(address=("192.0.2.1", 4)))
    assert world.run(lambda: again.ready)
    assert world.run(lambda: not world.endpoint.handshakes)


def test_a_flood_of_initials_by_itself_makes_it_ask_and_clients_get_in(engine) -> None:
    world = Asking(engine, "auto", handshakes=40)
    for number in range(200):
        world.say(initial(b"dest%04d" % number, HELLO), (f"10.{number}.0.1", 1))
    assert world.endpoint.handshakes == world.endpoint.connections == 10
    assert (world.told().retries, world.told().asking) == (190, True)
    client = world.connect()
    assert world.run(lambda: client.ready, seconds=3)
    assert client.quic._retry_count == 1
    assert world.told().limits_hit == {"handshakes": 0, "handshakes_per_network": 0}


def test_a_flood_that_is_not_even_authentic_makes_it_ask_too(engine) -> None:
    """Keys are made for each such packet, before it is found out."""
    world = Asking(engine, "auto", handshakes=40)
    junk = initial(b"d" * 8, HELLO)[14:]
    for number in range(100):
        world.say(b"\xc3\0\0\0\1\x08%08d" % number + junk, (f"10.{number}.0.1", 1))
    assert (world.endpoint.connections, world.told().retries, world.told().asking) == (0, 90, True)
    client = world.connect()
    assert world.run(lambda: client.ready, seconds=3)

"""aioquic's endpoint, where a test has to look inside; test_engine_quic_both.py has what it shares with the native one."""

import gc

import pytest
from aioquic.quic import connection as connection_module
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription, Epoch

from proxy.engine.events import ConnectionClosed, ConnectionReady, RequestHead
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import EngineLimits
from proxy.errors import Reset
from proxy.keys import Keyring
from tests.sim.material import profile
from tests.sim.packets import JUNK, crypto, initial
from tests.sim.simulator import Client, Link, World


def closed(world: World) -> list[str]:
    return [event.error for event in world.of(ConnectionClosed)]


@pytest.mark.parametrize("name", JUNK)
def test_junk_makes_no_connection_and_no_answer(name: str) -> None:
    world = World()
    world.inject(JUNK[name])
    assert world.endpoint.connections == 0
    assert world.endpoint.dropped == 1
    assert world.endpoint.take_datagrams(0.0) == []
    assert world.events == []
    assert not world.endpoint._by_cid


def test_handshakes_in_progress_are_bounded_and_time_out() -> None:
    world = World(settings=QuicSettings(retry="never", handshakes=10, handshake_timeout=3.0))
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


def test_many_gaps_in_handshake_data_are_cut() -> None:
    world = World()
    for number in range(40):
        frames = b"".join(crypto(2 + 8 * n, b"x") for n in range(number * 10, number * 10 + 10))
        world.inject(initial(b"d" * 8, frames, number=number))
    assert closed(world) == ["crypto_buffer_exceeded"]


def test_connection_ids_are_unique_and_differ_between_starts() -> None:
    mint, other = (Minter(Keyring.alone(b"s" * 16), lambda size, start=start: start * size) for start in (b"1", b"2"))
    made = [mint() for _ in range(5000)]
    assert len({cid for cid, _ in made}) == len({token for _, token in made}) == 5000
    assert {len(cid) for cid, _ in made} == {mint.cid_bytes}
    assert not {cid for cid, _ in made} & {other()[0] for _ in range(5000)}
    again = Minter(Keyring.alone(b"s" * 16), lambda size: b"1" * size)
    assert again() == made[0]


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
    [
        {"max_datagram_size": 1199},
        {"max_datagram_size": 70000},
        {"congestion_control": "vegas"},
        {"retry": "perhaps"},
        {"idle_timeout": 0},
        {"handshakes": 0},
        {"handshakes_per_network": 0},
        {"key_packets": 0},
    ],
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


def test_an_idle_connection_keeps_nothing_of_its_handshake() -> None:
    world = World()
    client = world.connect()
    assert world.run(lambda: bool(world.of(ConnectionReady)))
    (connection,) = world.endpoint._by_handle.values()
    transport = connection.transport
    assert transport._crypto_buffers == {}
    assert [bytes(stream.sender._buffer) for stream in transport._crypto_streams.values()] == [b"", b"", b""]
    client.quic._crypto_streams[Epoch.ONE_RTT].sender.write(b"x")  # a client's word by CRYPTO is none for TLS any more
    assert world.run(lambda: transport.close_event is not None)
    assert transport.close_event.error_code == QuicErrorCode.CRYPTO_ERROR + AlertDescription.unexpected_message

"""A client that sends what it likes: raw frames in packets with the right keys."""

from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from proxy.engine.events import ConnectionClosed
from proxy.engine.seam import Datagram, EngineLimits
from tests.sim.simulator import SERVER, Client, Link, World


def v(*numbers: int) -> bytes:
    return b"".join(encode_uint_var(number) for number in numbers)


def stream_frame(stream: int, offset: int, data: bytes, *, fin: bool = False) -> bytes:
    return v(0x0E | fin, stream, offset, len(data)) + data


def write_packet(quic: QuicConnection, payload: bytes, epoch: QuicPacketType = QuicPacketType.ONE_RTT) -> list[bytes]:
    """A packet of an established connection of a client's, with frames of our own, in a datagram."""
    builder = QuicPacketBuilder(
        host_cid=quic.host_cid,
        peer_cid=quic._peer_cid.cid,
        version=quic._version,
        is_client=True,
        max_datagram_size=1400,
        packet_number=quic._packet_number,
    )
    builder.start_packet(epoch, quic._cryptos[tls.Epoch.ONE_RTT])
    builder._buffer.push_bytes(payload)
    datagrams = builder.flush()[0]
    quic._packet_number = builder.packet_number
    return datagrams


class Attacker:
    """An established connection of which we write the packets."""

    def __init__(self, limits: EngineLimits | None = None, **options) -> None:
        self.world = World(Link(), limits, **options)
        self.client = self.world.connect(Client(http=False))
        assert self.world.run(lambda: self.client.ready)
        self.world.run(seconds=0.1)
        self.sent = 0

    @property
    def transport(self):
        """The connection within aioquic's engine."""
        return next(iter(self.world.endpoint._by_handle.values())).transport

    def frames(self, payload: bytes, epoch: QuicPacketType = QuicPacketType.ONE_RTT) -> None:
        """One packet with *payload*."""
        for datagram in write_packet(self.client.quic, payload, epoch):
            self.sent += len(datagram)
            self.world._events(self.world.endpoint.receive([Datagram(datagram, self.client.address, SERVER)], self.world.now))

    def many(self, frame: bytes, count: int) -> None:
        """*frame*, *count* times, a packet's worth at a time, until the connection is closed."""
        per_packet = max(1, 1200 // len(frame))
        while count > 0 and not self.closed:
            self.frames(frame * min(per_packet, count))
            count -= per_packet

    @property
    def closed(self) -> bool:
        return bool(self.world.of(ConnectionClosed))

"""HTTP/3 and QUIC by hand: aioquic carries the packets, every stream byte and every frame is the test's."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pylsqpack
from aioquic import tls
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from harness.authority import Authority
from harness.spoken import note

LIMIT = 10.0  # seconds that anything waits
UDP_SEGMENT = 103  # of linux/udp.h
DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0x0, 0x1, 0x3, 0x4, 0x5, 0x7, 0xD


def varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000, section 16)."""
    for size, mark in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << (8 * size - 2):
            return (value | mark << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(value)


def frame(kind: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame of HTTP/3; *length* for one that lies about it."""
    return varint(kind) + varint(len(payload) if length is None else length) + payload


def _prefixed(value: int, bits: int, mark: int) -> bytes:
    top = (1 << bits) - 1
    if value < top:
        return bytes((mark | value,))
    value -= top
    octets = bytes((mark | top,))
    while value >= 128:
        octets += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return octets + bytes((value,))


def section(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A field section of literals, whatever their bytes."""
    lines = (_prefixed(len(name), 3, 0x20) + name + _prefixed(len(value), 7, 0) + value for name, value in fields)
    return b"\0\0" + b"".join(lines)


def head(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return frame(HEADERS, section(fields))


@dataclass
class Answered:
    """What came on one stream."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    informational: list[int] = field(default_factory=list)
    body: bytes = b""
    data: bytes = b""
    """Bytes of frames that are not whole yet."""
    reset: int | None = None
    stopped: int | None = None
    ended: bool = False


class Raw3(QuicConnectionProtocol):
    """A QUIC connection with HTTP/3's answers read off it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.answers: dict[int, Answered] = {}
        self.terminated: events.ConnectionTerminated | None = None
        self.changed = asyncio.Event()
        self._decoder = pylsqpack.Decoder(0, 0)
        self._held: list[bytes] | None = None

    @property
    def quic(self) -> QuicConnection:
        return self._quic

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.terminated = event
        elif isinstance(event, events.StreamDataReceived):
            answer = self.answers.setdefault(event.stream_id, Answered())
            answer.data += event.data
            answer.ended = answer.ended or event.end_stream
            if not event.stream_id & 3:
                self._read(event.stream_id, answer)
        elif isinstance(event, events.StreamReset):
            answer = self.answers.setdefault(event.stream_id, Answered())
            answer.reset, answer.ended = event.error_code, True
        elif isinstance(event, events.StopSendingReceived):
            self.answers.setdefault(event.stream_id, Answered()).stopped = event.error_code
        self.changed.set()

    def _read(self, stream: int, answer: Answered) -> None:
        while answer.data:
            at = 0
            numbers = []
            for _ in range(2):
                size = 1 << (answer.data[at] >> 6) if at < len(answer.data) else 9
                if at + size > len(answer.data):
                    return
                numbers.append(int.from_bytes(answer.data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1))
                at += size
            kind, length = numbers
            if len(answer.data) < at + length:
                return
            payload, answer.data = answer.data[at : at + length], answer.data[at + length :]
            if kind == HEADERS:
                fields = self._decoder.feed_header(stream, payload)[1]
                status = int(dict(fields).get(b":status", 0))
                if 100 <= status < 200:
                    answer.informational.append(status)
                elif status:
                    answer.status, answer.headers = status, fields[1:]
                else:
                    answer.trailers = fields
            elif kind == DATA:
                answer.body += payload

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self._quic.send_stream_data(stream, data, end)
        self.transmit()

    def control(self, data: bytes = frame(SETTINGS)) -> int:
        """Open the control stream."""
        return self.unidirectional(b"\0" + data)

    def unidirectional(self, data: bytes, *, end: bool = False) -> int:
        stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
        self.send(stream, data, end=end)
        return stream

    def stream(self, data: bytes = b"", *, end: bool = False) -> int:
        """Open a request stream."""
        stream = self._quic.get_next_available_stream_id()
        self.send(stream, data, end=end)
        return stream

    def inject(self, kind: int, payload: bytes = b"", *, times: int = 1) -> None:
        """Send packets with one frame each that the library would never make."""
        quic = self._quic
        for _ in range(times):
            builder = QuicPacketBuilder(
                host_cid=quic.host_cid,
                is_client=True,
                max_datagram_size=1200,
                packet_number=quic._packet_number,
                peer_cid=quic._peer_cid.cid,
                version=quic._version,
            )
            builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[tls.Epoch.ONE_RTT])
            builder.start_frame(kind, capacity=len(payload) + 8).push_bytes(payload)
            for datagram in builder.flush()[0]:
                self._transport.sendto(datagram, quic._network_paths[0].addr)
            quic._packet_number = builder.packet_number

    def packet(self, payload: bytes, *, first: int = 0) -> None:
        """Send a packet of these frames, whatever they are; *first*: more bits of its first octet."""
        quic = self._quic
        crypto = quic._cryptos[tls.Epoch.ONE_RTT]
        first |= 0x43 | crypto.send.key_phase << 2
        self._seal(bytes((first,)) + quic._peer_cid.cid, payload, crypto)

    def initial(self, payload: bytes, *, first: int = 0) -> None:
        """The same for an Initial packet, padded."""
        quic = self._quic
        ids = b"".join(bytes((len(cid),)) + cid for cid in (quic._peer_cid.cid, quic.host_cid))
        payload += bytes(1172 - len(payload) - len(ids))
        header = bytes((0xC3 | first,)) + quic._version.to_bytes(4, "big") + ids + b"\0" + varint(len(payload) + 4 + 16)
        self._seal(header, payload, quic._cryptos[tls.Epoch.INITIAL])

    def _seal(self, header: bytes, payload: bytes, crypto: Any) -> None:
        number = self._quic._packet_number
        self._quic._packet_number += 1
        data = crypto.encrypt_packet(header + number.to_bytes(4, "big"), payload, number)
        if self._held is None:
            self._transport.sendto(data, self._quic._network_paths[0].addr)
        else:
            self._held.append(data)

    @contextmanager
    def together(self) -> Iterator[None]:
        """The packets that are made meanwhile, all of one size, reach the server at once: one system call sends them (UDP_SEGMENT)."""
        self._held = []
        yield
        held, self._held = self._held, None
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(held[0])))]
        through = self._transport.get_extra_info("socket")._sock
        through.sendmsg([b"".join(held)], control, 0, self._quic._network_paths[0].addr)

    async def until(self, condition: Any, what: str) -> None:
        """Wait for *condition* over what came."""

        async def wait() -> None:
            while not condition():
                assert self.terminated is None, f"the connection ended before {what}: {self.terminated}"
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), LIMIT)

    async def answer(self, stream: int) -> Answered:
        """What comes on *stream* until it ends."""
        await self.until(lambda: self.answers.setdefault(stream, Answered()).ended, f"stream {stream} did")
        return self.answers[stream]

    async def end(self) -> int:
        """Wait for the end of the connection; its error code."""

        async def wait() -> None:
            while self.terminated is None:
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), LIMIT)
        assert self.terminated is not None
        return self.terminated.error_code


@asynccontextmanager
async def raw3(
    authority: Authority,
    port: int,
    *,
    control: bool = True,
    sni: str = "a.example.com",
    alpn: Sequence[str] = H3_ALPN,
    hello: Callable[[QuicConnection], object] | None = None,
    silent: bool = False,
) -> AsyncIterator[Raw3]:
    """A connection to the proxy, with a control stream unless *control* is false.

    *hello* is done to it before it begins, and *silent* keeps the client's first datagram back; then nobody waits for the handshake.
    """
    note("HTTP/3")
    configuration = QuicConfiguration(is_client=True, alpn_protocols=list(alpn), server_name=sni)
    configuration.load_verify_locations(cafile=str(authority.file))
    address = ("127.0.0.1", port)
    quic = QuicConnection(configuration=configuration)
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Raw3(quic), local_addr=("127.0.0.1", 0))
    try:
        if hello is not None or silent:
            (hello or id)(quic)
            client.connect(address, transmit=not silent)
        else:
            client.connect(address)
            await asyncio.wait_for(client.wait_connected(), LIMIT)
            if control:
                client.control()
        yield client
    finally:  # without the wait for the end of the draining period that aioquic's own connect() has
        client.close()
        if client._timer is not None:
            client._timer.cancel()
        transport.close()


def initial(authority: Authority, sni: str | None = "a.example.com") -> bytes:
    """The first datagram of a new client."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=sni)
    configuration.load_verify_locations(cafile=str(authority.file))
    quic = QuicConnection(configuration=configuration)
    quic.connect(("127.0.0.1", 443), 0.0)
    return quic.datagrams_to_send(0.0)[0][0]


def said_to(port: int, datagrams: Iterable[bytes], wait: float = 0.2) -> list[bytes]:
    """Datagrams that come back within *wait* seconds of silence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", port))
        for datagram in datagrams:
            udp.send(datagram)
        udp.settimeout(wait)
        came = []
        try:
            while True:
                came.append(udp.recv(65536))
        except TimeoutError:
            return came

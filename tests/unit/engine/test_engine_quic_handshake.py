"""What is settled in a handshake, on every QUIC engine: which certificate, in how many bytes, by which cipher and group."""

import ssl
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair

from proxy.engine import choice
from proxy.engine.events import ConnectionClosed, ConnectionReady
from proxy.engine.quic.hello_retry import _Retold
from proxy.engine.quic.packets import read_long_header
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram
from tests.sim import engines
from tests.sim.material import profile
from tests.sim.packets import crypto, initial
from tests.sim.simulator import SERVER, Client, World

ALGORITHMS = {"P-256": 0x0403, "P-384": 0x0503, "P-521": 0x0603, "Ed25519": 0x0807, "RSA": 0x0804}
ZLIB = 1

pytestmark = pytest.mark.parametrize("engine", engines.parameters())


class Offering(Client):
    """A client whose ClientHello says what *offers* says: attributes of the library's TLS context."""

    def __init__(self, offers: dict, **options) -> None:
        super().__init__(verify_mode=ssl.CERT_NONE, **options)
        begin = self.quic._initialize

        def initialize(peer_cid: bytes) -> None:
            begin(peer_cid)
            for name, value in offers.items():
                setattr(self.quic.tls, name, value)

        self.quic._initialize = initialize


# Certificates by what the client can verify


@pytest.mark.parametrize(
    ("kinds", "verifies", "shown"),
    [
        (("P-256", "Ed25519", "RSA"), ("RSA", "P-256"), "P-256"),
        (("P-256", "Ed25519", "RSA"), ("RSA", "Ed25519"), "Ed25519"),
        (("P-256", "Ed25519", "RSA"), ("RSA",), "RSA"),
        (("P-384", "RSA"), ("P-256", "RSA"), "RSA"),  # TLS 1.3 ties the hash to the curve
        (("P-521", "RSA"), ("RSA", "P-521"), "P-521"),
        (("RSA",), ("P-256", "RSA"), "RSA"),
    ],
)
def test_a_client_is_shown_the_first_certificate_that_it_can_verify(engine, kinds, verifies, shown) -> None:
    world = World(engine=engine)
    world.profiles["a.example"] = profile("a.example", kinds=kinds)
    client = world.connect(Offering({"_signature_algorithms": [ALGORITHMS[kind] for kind in verifies]}))
    assert world.run(lambda: client.ready, seconds=5)
    expected = world.profiles["a.example"].certificates[kinds.index(shown)].certificate
    assert client.quic.tls._peer_certificate == expected


def test_a_client_that_can_verify_none_is_refused(engine) -> None:
    world = World(engine=engine, admit=lambda *_: True)
    world.profiles["a.example"] = profile("a.example", kinds=("P-256", "Ed25519"))
    client = world.connect(Offering({"_signature_algorithms": [ALGORITHMS["RSA"]]}))
    assert world.run(lambda: bool(client.closed), seconds=5)
    assert client.closed.error_code == 0x100 + 40  # handshake_failure
    assert [(event.error, "40" in event.detail or "signature" in event.detail) for event in world.of(ConnectionClosed)] == [
        ("tls_alert", True)
    ]


# Ciphers


AES_128, AES_256, CHACHA = tls.CipherSuite.AES_128_GCM_SHA256, tls.CipherSuite.AES_256_GCM_SHA384, tls.CipherSuite.CHACHA20_POLY1305_SHA256


@pytest.mark.parametrize(
    ("offered", "taken"),
    [((CHACHA, AES_128, AES_256), CHACHA), ((AES_128, CHACHA), AES_128), ((AES_256, CHACHA), AES_256), ((CHACHA,), CHACHA)],
)
def test_chacha20_is_for_clients_that_prefer_it(engine, offered, taken) -> None:
    """They have no AES instructions. Where this processor has none, BoringSSL prefers it for everybody."""
    world = World(engine=engine)
    client = world.connect(Client(cipher_suites=list(offered)))
    assert world.run(lambda: client.ready, seconds=5)
    assert client.quic.tls.key_schedule.cipher_suite in {taken} | ({CHACHA} if engine.name == "native" and not has_aes() else set())


def has_aes() -> bool:
    return " aes" in Path("/proc/cpuinfo").read_text(encoding="ascii")


# Certificates in fewer bytes


class Decompressing(Offering):
    """A client that takes its server's certificate compressed by zlib (RFC 8879), which the library's own does not."""

    def __init__(self, **options) -> None:
        super().__init__({}, **options)
        self.compressed = 0
        begin = self.quic._initialize

        def initialize(peer_cid: bytes) -> None:
            begin(peer_cid)
            context = self.quic.tls
            context.handshake_extensions.append((tls.ExtensionType.COMPRESS_CERTIFICATE, bytes((2, 0, ZLIB))))
            handle = context._handle_reassembled_message

            def reassembled(message_type: int, input_buf: Buffer, output_buf: dict) -> None:
                if message_type == 25:
                    message_type, input_buf = 11, self.decompressed(input_buf)
                handle(message_type=message_type, input_buf=input_buf, output_buf=output_buf)

            context._handle_reassembled_message = reassembled

        self.quic._initialize = initialize

    def decompressed(self, buf: Buffer) -> object:
        """The Certificate message; for the transcript, it is what came."""
        whole = buf.data_slice(0, buf.capacity)
        self.compressed = len(whole)
        assert whole[4:6] == bytes((0, ZLIB))
        body = zlib.decompress(whole[12:])
        assert len(body) == int.from_bytes(whole[6:9])
        certificate = Buffer(data=b"\x0b" + len(body).to_bytes(3) + body)
        return Transcript(certificate, whole)


class Transcript(_Retold):
    """Stands for a message, and for its transcript is another one."""

    __slots__ = ()

    @property
    def data(self) -> bytes:
        return self._before


def test_a_long_chain_is_compressed_once_and_fits_the_first_flight(engine) -> None:
    """Three times what the client sent is not enough for the chain as it is: the handshake would take a round trip more."""
    world = World(engine=engine)
    world.profiles["a.example"] = long_chain(9)
    if not choice.find("quic", engine.name).certificate_compressions:
        client = world.connect(Decompressing())
        assert world.run(lambda: client.ready, seconds=5)
        assert (client.compressed, world.endpoint.certificates_compressed) == (0, {})
        return
    size = len(world.profiles["a.example"].certificates[0].chain_pem)
    clients = []
    for number in range(2):
        client = world.connect(Decompressing(address=("198.51.100.7", 4000 + number)))
        hello = [data for data, _ in client.quic.datagrams_to_send(0.0)]
        world.endpoint.receive([Datagram(data, client.address, SERVER) for data in hello], 0.0)
        for transmit in world.endpoint.take_datagrams(0.0):
            client.quic.receive_datagram(transmit.data, SERVER, 0.0)
        client.drain()
        assert client.ready, "in one round trip"
        clients.append(client)
    assert world.run(lambda: len(world.of(ConnectionReady)) == 2, seconds=5)
    assert {client.compressed for client in clients} == {clients[0].compressed}
    assert 100 < clients[0].compressed < size / 4
    assert world.endpoint.certificates_compressed == {"zlib": 2, "brotli": 0}


def test_a_client_that_takes_none_or_a_server_that_has_none_does_without(engine) -> None:
    for kind, compression in ((Client, None), (Decompressing, ())):
        world = World(engine=engine, settings=QuicSettings(certificate_compression=compression))
        client = world.connect(kind())
        assert world.run(lambda client=client: client.ready, seconds=5)
        assert getattr(client, "compressed", 0) == sum(world.endpoint.certificates_compressed.values()) == 0


def long_chain(count: int):
    """A profile whose chain has its certificate *count* times."""
    once = profile("a.example").certificates[0]
    certificate = SimpleNamespace(chain_pem=once.chain_pem * count, key_pem=once.key_pem)
    return type(profile("a.example"))(certificates=(certificate,), client_rule=None, early_data=False)


# Amplification


def test_a_silent_address_is_sent_no_more_than_three_times_its_bytes_however_long_one_waits(engine) -> None:
    """RFC 9000, section 8.1: with a chain that is longer, and with every probe timeout until the handshake is given up."""
    world = World(engine=engine, settings=QuicSettings(handshake_timeout=4.0))
    world.profiles["a.example"] = long_chain(12)
    client = Client()
    client.quic.connect(SERVER, now=0.0)
    sent = 0
    for data, _ in client.quic.datagrams_to_send(0.0):
        sent += len(data)
        world.inject(data, client.address)
    answered: list[bytes] = []
    take = world.endpoint.take_datagrams

    def counting(now: float) -> list:
        transmits = take(now)
        answered.extend(transmit.data for transmit in transmits)
        return transmits

    world.endpoint = Wrapped(world.endpoint, counting)
    world.run(seconds=4.5)
    assert 2 * sent < sum(map(len, answered)) <= 3 * sent
    assert world.endpoint.connections == 0


class Wrapped:
    """An endpoint whose datagrams are looked at."""

    def __init__(self, endpoint, take) -> None:
        self._endpoint = endpoint
        self.take_datagrams = take

    def __getattr__(self, name: str):
        return getattr(self._endpoint, name)


def test_a_long_chain_gets_through_to_a_client_that_answers(engine) -> None:
    world = World(engine=engine)
    world.profiles["a.example"] = long_chain(12)
    client = world.connect(Offering({}))
    assert world.run(lambda: client.ready, seconds=10)


# HelloRetryRequest


class Wrong(Offering):
    """A client that sends a share of P-521, which is none of ours, and has *groups* besides."""

    def __init__(self, *groups: int) -> None:
        super().__init__({"_supported_groups": [tls.Group.SECP521R1]})
        self.groups = groups

    def hello(self) -> bytes:
        """The ClientHello."""
        push = tls.push_client_hello

        def pushed(buf: Buffer, hello: tls.ClientHello) -> None:
            hello.supported_groups = [tls.Group.SECP521R1, *self.groups]
            push(buf, hello)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tls, "push_client_hello", pushed)
            self.quic.connect(SERVER, now=0.0)
        return bytes(self.quic._crypto_streams[tls.Epoch.INITIAL].sender._buffer)


def test_a_share_of_another_group_is_asked_to_be_one_of_ours_and_once_only(engine) -> None:
    """Clients that go on from there are in tests/e2e/test_e2e_handshakes.py; this one says the same again."""
    world = World(engine=engine)
    client = Wrong(tls.Group.X25519)
    hello = client.hello()
    world.inject(initial(b"d" * 8, crypto(0, hello), scid=client.quic.host_cid))
    [answer, *_] = world.endpoint.take_datagrams(0.0)
    message = server_hello(answer.data)
    assert message.random == bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    assert dict(message.other_extensions)[tls.ExtensionType.KEY_SHARE] == b"\0\x1d"
    assert world.events == []
    world.inject(initial(b"d" * 8, crypto(len(hello), hello), number=1, scid=client.quic.host_cid))
    world.endpoint.take_datagrams(0.0)
    world._events(world.endpoint.take_events())
    assert [(event.error, event.detail[:8]) for event in world.of(ConnectionClosed)] in ([("tls_alert", "alert 47")], [])
    world.run(seconds=3)
    assert not world.of(ConnectionReady)
    assert world.endpoint.connections == 0


def test_nothing_in_common_ends_the_handshake(engine) -> None:
    world = World(engine=engine)
    client = Wrong(0x1234)
    client.hello()
    world.clients.append(client)
    assert world.run(lambda: bool(client.closed), seconds=5)
    assert client.closed.error_code == 0x100 + 40


def server_hello(datagram: bytes) -> tls.ServerHello:
    """Out of the first packet of a server that has answered the connection ID ``d`` * 8."""
    header = read_long_header(datagram)
    assert header is not None
    keys = CryptoPair()
    keys.setup_initial(cid=b"d" * 8, is_client=True, version=1)
    at = 7 + len(header.destination) + len(header.source)
    buf = Buffer(data=datagram)
    buf.seek(at)
    assert buf.pull_uint_var() == 0  # no token
    length = buf.pull_uint_var()
    start = buf.tell()
    _, plain, _ = keys.decrypt_packet(datagram[: start + length], start, 0)
    frames = Buffer(data=plain)
    while (kind := frames.pull_uint_var()) != 6:
        assert kind in (2, 0, 1), kind
        if kind == 2:
            for _ in range(4):
                frames.pull_uint_var()
    assert frames.pull_uint_var() == 0
    return hello_with_group(Buffer(data=frames.pull_bytes(frames.pull_uint_var())))


def hello_with_group(buf: Buffer) -> tls.ServerHello:
    """The library reads a share where a HelloRetryRequest has the group alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "pull_key_share", lambda buf: (buf.pull_uint16(), b""))
        message = tls.pull_server_hello(buf)
    message.other_extensions.append((tls.ExtensionType.KEY_SHARE, message.key_share[0].to_bytes(2)))
    return message

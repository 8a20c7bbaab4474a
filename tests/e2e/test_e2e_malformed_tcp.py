"""Hostile bytes before and within TLS: each costs its own connection, is counted by reason, and the proxy goes on serving."""

import socket
import ssl
import struct
import time
from contextlib import suppress

import pytest
from harness import clients
from harness.guard import Guard, sample
from harness.hello import ALPN, KEY_SHARE, SERVER_NAME, SUPPORTED_VERSIONS, client_hello, edited, record, records, server_name
from harness.wire import Wire, plain_wire, wire

TIMEOUT = 1.0  # seconds that the proxy of this module gives a handshake and a head
GOOD = b"GET /hello HTTP/1.1\r\nhost: a.example.com\r\n\r\n"
HELLO = b"Hello from a.example.com (HTTP/1.1)!\n"
FATAL = {"handshake_failure": 40, "decode_error": 50, "protocol_version": 70, "unrecognized_name": 112, "no_application_protocol": 120}


@pytest.fixture(scope="module")
def proxy(make_proxy):
    timeouts = {"handshake": f"{TIMEOUT}s", "header": f"{TIMEOUT}s"}
    return make_proxy(server={"timeouts": timeouts}).start()


@pytest.fixture(scope="module")
def guard(authority, proxy, backends):
    return Guard(authority, proxy, backends)


def failed(reason: str) -> str:
    return sample("qproxy_handshake_failures_total", transport="tcp", reason=reason)


def alert_of(said: bytes) -> int | None:
    """The description of a fatal alert in clear; None for silence."""
    if not said:
        return None
    kind, _, length = struct.unpack_from("!BHH", said)
    assert (kind, length) == (21, 2), said
    return said[6]


REAL = client_hello()

NOT_TLS = {
    "zeros": bytes(512),
    "all ones": b"\xff" * 512,
    "digits": b"1234567890\r\n\r\n",
    "a record of SSL 2": b"\x80\x2e\x01\x00\x02" + bytes(48),
    "a handshake of a version that is not of TLS": b"\x16\x09\x09\x00\x05hello",
    "an alert at first": record(b"\x02\x28", kind=21),
    "application data at first": record(b"x" * 100, kind=23),
    "a change of cipher spec at first": record(b"\x01", kind=20),
    "a PROXY header of version 2 that nobody allowed": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + REAL,
}


@pytest.mark.parametrize("name", NOT_TLS)
def test_what_is_neither_tls_nor_http_is_cut(proxy, guard, name):
    with guard.case(failed("not_tls")), plain_wire(proxy.port) as connection:
        connection.send(NOT_TLS[name])
        assert connection.rest() == b""


BROKEN = {
    "a record of 65535 bytes": b"\x16\x03\x01\xff\xff" + bytes(1000),
    "an empty record": b"\x16\x03\x01\x00\x00" + REAL,
    "a ServerHello": record(b"\x02\x00\x00\x26" + bytes(38)),
    "a ClientHello of 16 megabytes": record(b"\x01\xff\xff\xff" + bytes(8000)),
    "a ClientHello in records of other kinds": records(REAL, 100)[:105] + record(b"x", kind=23),
    "a ClientHello that ends early": record(b"\x01\x00\x00\x20" + REAL[9 : 9 + 32]),
    "a session id of 64 bytes": record(b"\x01\x00\x00\x70\x03\x03" + bytes(32) + b"\x40" + bytes(77)),
    "extensions of a wrong length": record(REAL[5:-2] + b"\0" * 2).replace(b"\x00\x2b\x00", b"\x00\x2b\x7f"),
    "two server_name extensions": edited(REAL, {}, twice=SERVER_NAME),
    "two ALPN extensions": edited(REAL, {}, twice=ALPN),
    "a server_name of a wrong length": edited(REAL, {SERVER_NAME: b"\x00\xff\x00\x00\x0da.example.com"}),
    "a server_name of another type": edited(REAL, {SERVER_NAME: server_name(b"a.example.com", kind=1)}),
    "an empty server_name": edited(REAL, {SERVER_NAME: b""}),
    "an empty ALPN list": edited(REAL, {ALPN: b"\0\0"}),
    "an ALPN list with an empty name": edited(REAL, {ALPN: b"\0\4\0\2h2"}),
    "supported_versions of an odd length": edited(REAL, {SUPPORTED_VERSIONS: b"\3\3\4\3"}),
    "a key_share of a wrong length": edited(REAL, {KEY_SHARE: b"\0\xff" + b"x" * 20}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_clienthello_that_breaks_the_rules_gets_an_alert(proxy, guard, name):
    with guard.case(failed("decode_error")), plain_wire(proxy.port) as connection:
        connection.send(BROKEN[name])
        assert alert_of(connection.rest()) == FATAL["decode_error"]


REFUSED = {
    "TLS 1.2 only": (edited(REAL, {SUPPORTED_VERSIONS: None}), "unsupported_protocol", 70),
    "versions of tomorrow only": (edited(REAL, {SUPPORTED_VERSIONS: b"\2\3\5"}), "unsupported_protocol", 70),
    "SSL 3.0": (edited(REAL, {SUPPORTED_VERSIONS: b"\2\3\0"}), "unsupported_protocol", 70),
    "a protocol that nobody speaks": (edited(REAL, {ALPN: b"\0\7\6spdy/3"}), "no_application_protocol", 120),
    "HTTP/3 over TCP": (edited(REAL, {ALPN: b"\0\3\2h3"}), "no_application_protocol", 120),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_client_may_not_ask_for_is_refused_by_the_alert_that_says_so(proxy, guard, name):
    data, reason, alert = REFUSED[name]
    with guard.case(failed(reason)), plain_wire(proxy.port) as connection:
        connection.send(data)
        assert alert_of(connection.rest()) == alert


NAMES = {
    "bytes beyond ASCII": "a.ex\u00e4mple.com".encode(),
    "a path in the name": b"../../etc/passwd",
    "a dot alone": b".",
    "two dots": b"a..example.com",
    "an IPv4 address": b"127.0.0.1",
    "an IPv6 address": b"::1",
    "a wildcard": b"*.a.example.com",
    "line ends": b"a.example.com\r\nx: y",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_host_counts_as_an_unknown_one(proxy, guard, name):
    """The handshake goes on with the default certificate, and no such name becomes a label of a metric."""
    domain = sample("sni_resolutions_total", domain="default")
    with guard.case(domain), plain_wire(proxy.port) as connection:
        connection.send(edited(REAL, {SERVER_NAME: server_name(NAMES[name])}))
        kind, _, length = struct.unpack("!BHH", connection.take(5))
        assert (kind, connection.take(length)[0]) == (22, 2)  # a ServerHello
    domains = {key for key in guard.metrics() if key.startswith("sni_resolutions_total{")}
    known = {sample("sni_resolutions_total", domain=name) for name in ("default", *proxy.sites, *(f"*.{host}" for host in proxy.sites))}
    assert domains <= known


@pytest.mark.parametrize("name", [b"a.example.com\0.evil", b"a" * 300], ids=["NUL", "300 bytes"])
def test_a_name_that_tls_itself_forbids_ends_the_handshake(proxy, guard, name):
    """OpenSSL refuses it; no site's certificate is shown for the part before the NUL."""
    with plain_wire(proxy.port) as connection:
        connection.send(edited(REAL, {SERVER_NAME: server_name(name)}))
        assert alert_of(connection.rest()) in FATAL.values()
    guard.check()


@pytest.mark.parametrize("sni", ["A.EXAMPLE.com", "a.example.com.", "x.a.example.com"])
def test_a_name_in_another_form_finds_its_certificate(proxy, guard, sni):
    """SNI without regard to case and a final dot; a wildcard for one label."""
    said = clients.s_client(proxy.port, "-quiet", "-ign_eof", sni=sni, data=GOOD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert HELLO.decode() in said, said
    guard.check()


PIECES = {"one byte a record": 1, "seven bytes a record": 7, "a hundred bytes a record": 100}


@pytest.mark.parametrize("name", PIECES)
def test_a_clienthello_in_many_records_is_read_as_one(proxy, guard, name):
    """Record boundaries mean nothing (RFC 8446, section 5.1)."""
    with plain_wire(proxy.port) as connection:
        connection.send(records(REAL, PIECES[name]))
        assert connection.take(6)[::5] == b"\x16\x02"  # a ServerHello
    guard.check()


def test_a_clienthello_byte_by_byte(authority, proxy, guard):
    """A whole handshake whose first flight comes in segments of one byte each."""
    context = clients.trusting(authority)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.example.com")
    with plain_wire(proxy.port) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    connection.send(bytes((byte,)))
                incoming.write(connection.socket.recv(65536))
        client.write(GOOD)
        connection.send(outgoing.read())
        said = b""
        while HELLO not in said:
            try:
                said += client.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(connection.socket.recv(65536))
    guard.check()


STALLED = {
    "not a byte": b"",
    "one byte": REAL[:1],
    "a record's head": REAL[:5],
    "half a ClientHello": REAL[: len(REAL) // 2],
    "all but one": REAL[:-1],
}


def test_a_handshake_that_stalls_is_cut_in_time(proxy, guard):
    """All of them at once: each is let go of soon after the configured time, and not before it."""
    with guard.case(failed("timeout")):
        began = time.monotonic()
        stalled = [socket.create_connection(("127.0.0.1", proxy.port), timeout=20) for _ in STALLED]
        for connection, data in zip(stalled, STALLED.values(), strict=True):
            connection.sendall(data)
        for connection in stalled:
            assert Wire(connection).rest() == b""
            assert time.monotonic() - began > TIMEOUT * 0.9
            connection.close()


def test_a_client_that_leaves_within_the_handshake(proxy, guard):
    """By FIN and by RST, with half a ClientHello sent and with all of it."""
    with guard.case(failed("closed")):
        for data in (REAL[: len(REAL) // 2], REAL):
            for linger in (None, struct.pack("ii", 1, 0)):
                connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
                connection.sendall(data)
                if linger is not None:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()
    guard.wait_for(lambda: guard.metrics().get(sample("qproxy_connections_open", version="HTTP/1.1"), 0) == 0, "let go of all connections")


def test_a_connection_that_says_nothing_is_no_failure(proxy, guard):
    """Load balancers probe by connecting and closing: that is not counted as a failed handshake."""
    before = {key: value for key, value in guard.metrics().items() if key.startswith("qproxy_handshake_failures_total")}
    for _ in range(3):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20).close()
    guard.check()
    assert {key: value for key, value in guard.metrics().items() if key.startswith("qproxy_handshake_failures_total")} == before


class Session:
    """A TLS client in memory, so that a test can change what it sends."""

    def __init__(self, authority, connection: Wire) -> None:
        context = clients.trusting(authority)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example.com")
        self.connection = connection
        self._until(self.tls.do_handshake)

    def _until(self, step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.connection.send(self.outgoing.read())
                data = self.connection.socket.recv(65536)
                if not data:
                    return b""
                self.incoming.write(data)
            finally:
                self.connection.send(self.outgoing.read())

    def ask(self) -> bytes:
        self.tls.write(GOOD)
        said = b""
        while HELLO not in said:
            piece = self._until(lambda: self.tls.read(65536))
            assert piece, said
            said += piece
        return said

    def encrypted(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()


AFTER_THE_HANDSHAKE = {
    "a record whose tag is wrong": lambda session: session.encrypted(GOOD)[:-1] + b"\0",
    "a record twice": lambda session: session.encrypted(b"GET ") * 2,
    "a record in clear": lambda session: record(GOOD, kind=23, version=0x0303),
    "a handshake in clear": lambda session: REAL,
    "a record of 20000 bytes": lambda session: record(b"x" * 20000, kind=23, version=0x0303),
    "plain HTTP": lambda session: GOOD,
    "zeros": lambda session: bytes(100),
}


@pytest.mark.parametrize("name", AFTER_THE_HANDSHAKE)
def test_broken_records_after_the_handshake_end_the_connection(authority, proxy, guard, name):
    """With a request served before; nothing of the broken record is taken for a request."""
    with guard.case(sample("qproxy_connection_errors_total", version="HTTP/1.1", error="tls")), plain_wire(proxy.port) as connection:
        session = Session(authority, connection)
        session.ask()
        connection.send(AFTER_THE_HANDSHAKE[name](session))
        assert b"HTTP/1.1" not in connection.rest()


def test_a_record_that_never_ends_holds_up_nobody(authority, proxy, guard):
    """A part of a record behind a request: not a byte of it can be read; the connection waits, and costs nobody anything."""
    with plain_wire(proxy.port) as connection:
        session = Session(authority, connection)
        connection.send(session.encrypted(GOOD)[:-5])
        guard.check()


SLOW = {
    "a part of the line": b"GET /never",
    "a part of the fields": b"GET /never HTTP/1.1\r\nhost: a.example.com\r\nx-a: ",
    "everything but the last line end": b"GET /never HTTP/1.1\r\nhost: a.example.com\r\n",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_head_gets_408(authority, proxy, guard, name):
    """Bytes that keep coming don't put it off: the time runs from the first byte of the head."""
    with (
        guard.case(sample("qproxy_rejected_total", version="HTTP/1.1", reason="header_timeout")),
        wire(authority, proxy.port) as connection,
    ):
        began = time.monotonic()
        connection.send(SLOW[name])
        connection.socket.settimeout(TIMEOUT / 10)
        while time.monotonic() - began < 15:
            try:
                if not connection._more():
                    break
            except TimeoutError:
                connection.send(b"a")
        assert connection.data.startswith(b"HTTP/1.1 408 "), connection.data
        assert time.monotonic() - began > 0.9 * TIMEOUT


def test_a_second_head_that_is_slow_gets_408_too(authority, proxy, guard):
    """On a connection that was kept alive."""
    with (
        guard.case(sample("qproxy_rejected_total", version="HTTP/1.1", reason="header_timeout")),
        wire(authority, proxy.port) as connection,
    ):
        assert connection.ask(GOOD).body == HELLO
        connection.send(b"GET /never HTTP/1.1\r\nhos")
        answer = connection.reply()
        assert (answer.status, answer.get("connection")) == (408, "close")
        assert connection.rest() == b""


def test_a_half_closed_client_gets_its_answers(proxy, guard, authority):
    """close_notify behind two requests: both are answered; then the connection ends."""
    with plain_wire(proxy.port) as connection:
        session = Session(authority, connection)
        session.tls.write(GOOD + GOOD)
        with pytest.raises(ssl.SSLWantReadError):
            session.tls.unwrap()
        connection.send(session.outgoing.read())
        session.incoming.write(connection.rest())
        said = b""
        with suppress(ssl.SSLZeroReturnError):
            while piece := session.tls.read(65536):
                said += piece
    assert said.count(HELLO) == 2
    guard.check()


def test_a_client_that_closes_within_a_head_is_let_go(authority, proxy, guard):
    """Half a head and then FIN: no answer, no request, no connection left."""
    with wire(authority, proxy.port) as connection:
        connection.send(b"GET /never HTTP/1.1\r\nhost: a.exam")
        connection.socket.shutdown(socket.SHUT_WR)
        assert b"HTTP/1.1 2" not in connection.rest()
    guard.check()
    guard.wait_for(lambda: guard.metrics().get(sample("qproxy_connections_open", version="HTTP/1.1"), 0) == 0, "let go of all connections")


PLAIN = {
    "a malformed request in plain text": (b"GET /never HTTP/1.1\r\nhost : a\r\n\r\n", 400),
    "the preface of HTTP/2 in plain text": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a PROXY header of version 1 that nobody allowed": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + GOOD, 400),
    "the banner of SSH, and silence": (b"SSH-2.0-OpenSSH_9.6\r\n", 408),
    "an unknown host in plain text": (b"GET /never HTTP/1.1\r\nhost: nobody.example.org\r\nconnection: close\r\n\r\n", 421),
    "smuggling in plain text": (
        b"POST /never HTTP/1.1\r\nhost: a.example.com\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_hostile_plain_text_gets_an_answer_in_plain_text(proxy, guard, name):
    data, status = PLAIN[name]
    with plain_wire(proxy.port) as connection:
        connection.send(data)
        assert connection.reply().status == status
        assert connection.rest() == b""
    guard.check()


def test_a_hundred_hostile_connections_at_once_leave_room_for_a_good_one(proxy, guard):
    """A third of each: garbage, half a ClientHello, a slow head; meanwhile and afterwards a good client is served."""
    connections = [socket.create_connection(("127.0.0.1", proxy.port), timeout=20) for _ in range(99)]
    for number, connection in enumerate(connections):
        connection.sendall((b"\xff" * 100, REAL[:50], b"GET /never HTTP/1.1\r\n")[number % 3])
    guard.check()
    for connection in connections:
        Wire(connection).rest()
        connection.close()
    guard.check()

"""TLS sessions and contexts against OpenSSL's own client, in memory."""

import ssl
import struct
import tempfile
from pathlib import Path

import pytest

from proxy.listen import tls, tls_session
from proxy.listen.peek import ClientHello, Peek
from proxy.listen.tls import (
    FAILURES,
    NO_APPLICATION_PROTOCOL_ALERT,
    UNRECOGNIZED_NAME_ALERT,
    ContextError,
    TlsContexts,
    TlsFailure,
    TlsSession,
    check_hello,
)
from proxy.snapshot import Listener
from proxy.sni import Certificate, ClientCertificateRule, SniTable, TlsProfile

BOTH = frozenset({"h2", "http/1.1", "h3"})


class Client:
    """An OpenSSL client whose bytes are carried by hand."""

    def __init__(self, context: ssl.SSLContext, name: str | None = "a.example.com", session: ssl.SSLSession | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name, session=session)
        self.done = False

    def step(self, data: bytes = b"") -> bytes:
        if data:
            self.incoming.write(data)
        if not self.done:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass
        return self.outgoing.read()

    def say(self, data: bytes) -> bytes:
        sent = 0
        while sent < len(data):
            sent += self.tls.write(data[sent:])
        return self.outgoing.read()

    def hear(self, data: bytes) -> bytes:
        self.incoming.write(data)
        heard = []
        try:
            while piece := self.tls.read(65536):
                heard.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(heard)


def shake(client: Client, server: TlsSession) -> None:
    """Carry the handshake to its end; raises what the server raises."""
    done = False
    for _ in range(10):
        to_server = client.step(server.take())
        if to_server:
            server.feed(to_server)
        done = done or server.handshake()
        if done and client.done:
            client.hear(server.take())  # the tickets
            return
    pytest.fail("the handshake does not end")


def trusting(pem: bytes, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def with_certificate(context: ssl.SSLContext, signed, folder: Path) -> ssl.SSLContext:
    path = folder / f"{signed.names[0]}.pem"
    path.write_bytes(signed.chain + signed.key)
    context.load_cert_chain(path)
    return context


def profile(signed, rule: ClientCertificateRule | None = None, domain: str = "a.example.com") -> TlsProfile:
    return TlsProfile(signed.certificate(), rule, domain)


class FakeSnapshot:
    """The two parts of a snapshot that contexts are made from."""

    def __init__(self, exact: dict[str, TlsProfile], default: TlsProfile, *protocols: frozenset[str]) -> None:
        self.sni = SniTable(exact, {}, default, refuse_unknown=False)
        self.listeners = tuple(Listener(("127.0.0.1", 1), each, 1, None, None) for each in protocols)


@pytest.fixture
def site(authority):
    return authority.sign("a.example.com", "*.a.example.com")


@pytest.fixture
def connected(authority, site):
    client = Client(trusting(authority.pem, "h2", "http/1.1"))
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    shake(client, server)
    return client, server


# Sessions


def test_a_handshake_gives_tls13_alpn_by_our_order_and_the_certificate(authority, site):
    client = Client(trusting(authority.pem, "http/1.1", "h2"))
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    assert (server.alpn, server.cipher, server.version) == (None, "", "")
    shake(client, server)
    assert (server.alpn, client.tls.selected_alpn_protocol(), server.version) == ("h2", "h2", "TLSv1.3")
    assert server.cipher.startswith("TLS_")
    assert not server.resumed
    assert server.client_certificate is None
    assert ("DNS", "a.example.com") in client.tls.getpeercert()["subjectAltName"]


def test_small_messages_both_ways(connected):
    client, server = connected
    server.feed(client.say(b"hello"))
    assert (server.read(), server.read(), server.pending, server.closed) == (b"hello", b"", False, False)
    server.write(b"welcome")
    assert client.hear(server.take()) == b"welcome"
    assert server.take() == b""


def test_writing_nothing_sends_nothing(connected):
    _, server = connected
    server.write(b"")
    assert server.take() == b""
    assert server.encrypt(b"") == b""


def decrypted(server: TlsSession, data: bytes) -> bytes:
    """All that comes out of *data*, as the listener takes it."""
    got = server.decrypt(data)
    while server.pending:
        got += server.read()
    return got


@pytest.mark.parametrize("size", [1, 4, 5, 6, 30, 16_000, 40_000, 200_000])
def test_records_cut_anywhere_are_decrypted_whole(connected, size):
    client, server = connected
    body = bytes(range(256)) * 400
    records = client.say(b"small") + client.say(body) + client.say(b"last")
    pieces = [decrypted(server, records[at : at + size]) for at in range(0, len(records), size)]
    assert b"".join(pieces) == b"small" + body + b"last"
    assert not server.closed


@pytest.mark.parametrize("size", [1, 16384, 16385, 100_000])
def test_what_is_encrypted_comes_with_what_was_written_before_it(connected, size):
    client, server = connected
    body = bytes(range(256)) * (size // 256 + 1)
    server.write(b"before")
    sent = server.encrypt(body[:size])
    assert client.hear(sent) == b"before" + body[:size]
    assert server.take() == b""


def test_close_notify_is_seen_by_decrypt(connected):
    client, server = connected
    assert (server.decrypt(client.say(b"good")), server.closed) == (b"good", False)
    data = client.say(b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    alone = client.outgoing.read()
    assert (server.decrypt(data), server.decrypt(alone), server.closed) == (b"bye", b"", True)
    assert server.decrypt(b"more") == b""


def test_a_broken_record_fails_in_decrypt_every_time(connected):
    client, server = connected
    bad = bytearray(client.say(b"bad"))
    bad[-1] ^= 1
    reasons = []
    for data in (bytes(bad), b"more"):
        with pytest.raises(TlsFailure) as caught:
            server.decrypt(data)
        reasons.append(caught.value.reason)
    assert reasons == ["decode_error", "decode_error"]


@pytest.mark.parametrize("size", [16384, 16385, 1_000_000])
def test_bodies_of_any_size_are_written_whole(connected, size):
    client, server = connected
    body = bytes(range(256)) * (size // 256 + 1)
    server.write(body[:size])
    server.write(b"end")
    assert client.hear(server.take()) == body[:size] + b"end"


def test_a_read_is_bounded_and_says_that_more_is_pending(connected):
    client, server = connected
    body = bytes(range(256)) * 4096
    server.feed(memoryview(bytearray(client.say(body))))
    pieces = []
    while True:
        piece = server.read()
        assert len(piece) < tls_session.READ_LIMIT + 16384
        pieces.append(piece)
        if not server.pending:
            break
    assert len(pieces) == 4
    assert b"".join(pieces) == body
    assert server.read() == b""


def test_a_shared_receive_buffer_may_be_used_again_at_once(connected):
    client, server = connected
    ciphertext = client.say(b"x" * 200_000)
    buffer = bytearray(ciphertext)
    server.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert server.read() == b"x" * 200_000


def test_ciphertext_byte_by_byte(connected):
    client, server = connected
    got = []
    for byte in client.say(b"hello " * 10):
        server.feed(bytes((byte,)))
        got.append(server.read())
    assert b"".join(got) == b"hello " * 10


def test_feeding_twice_before_a_read_keeps_the_order(connected):
    client, server = connected
    first, second, third = client.say(b"1" * 100_000), client.say(b"2" * 100_000), client.say(b"3")
    for ciphertext in (first, second, third):
        server.feed(ciphertext)
    assert server.read() == b"1" * 100_000 + b"2" * 100_000 + b"3"


def test_data_with_the_last_flight_of_the_handshake_is_not_lost(authority, site):
    client = Client(trusting(authority.pem, "h2"))
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(client.step())
    assert server.handshake() is False
    last_flight = client.step(server.take())
    server.feed(last_flight + client.say(b"early bird" * 9000))
    assert server.handshake() is True
    assert server.read() == b"early bird" * 9000


def test_the_clients_close_notify_ends_reading_and_not_writing(connected):
    client, server = connected
    ciphertext = client.say(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    server.feed(ciphertext + client.outgoing.read())
    assert (server.read(), server.closed) == (b"last words", True)
    server.feed(b"anything after it")
    assert server.read() == b""
    server.write(b"answer")
    assert server.take() != b""
    server.close_notify()
    assert server.take() != b""


def test_our_close_notify_reaches_the_client(connected):
    client, server = connected
    server.write(b"bye")
    server.close_notify()
    assert client.hear(server.take()) == b"bye"
    assert client.tls.read(1) == b""
    server.close_notify()
    assert server.take() == b""


def test_close_notify_is_harmless_before_the_handshake(site):
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.close_notify()
    assert server.take() == b""


def test_a_changed_record_fails_after_what_came_before_it(connected):
    client, server = connected
    good, bad = client.say(b"good"), bytearray(client.say(b"bad"))
    bad[-1] ^= 1
    server.feed(good + bytes(bad))
    assert server.read() == b"good"
    assert server.pending
    for _ in range(2):
        with pytest.raises(TlsFailure) as caught:
            server.read()
        assert caught.value.reason == "decode_error"
    assert server.take() != b""


def test_a_write_after_a_failure_is_a_failure_and_nothing_else(connected):
    client, server = connected
    bad = bytearray(client.say(b"bad"))
    bad[-1] ^= 1
    server.feed(bytes(bad))
    with pytest.raises(TlsFailure):
        server.read()
    with pytest.raises(TlsFailure):
        server.write(b"x" * 100)
    server.close_notify()


def test_an_idle_session_keeps_little_after_bulk(connected):
    """A memory BIO never shrinks, so what it once held it keeps: the largest piece given to it is what counts."""
    client, server = connected
    body = b"x" * 1_000_000
    sizes = []

    class Watched:
        def __init__(self, bio) -> None:
            self._bio = bio

        def read(self) -> bytes:
            sizes.append(self._bio.pending)
            return self._bio.read()

    server._outgoing = Watched(server._outgoing)
    server.write(body)
    assert client.hear(server.take()) == body
    assert max(sizes) < 20_000
    server.feed(client.say(body))
    assert server._incoming.pending <= 32 * 1024


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        b"\x17\x03\x03\x00\x01x",
        b"\x16\x03\x01\xff\xff" + bytes(99),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(99),
    ],
)
def test_garbage_fails_with_a_reason_of_the_set(site, data):
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(data)
    with pytest.raises(TlsFailure) as caught:
        server.handshake()
    assert caught.value.reason in FAILURES
    server.close_notify()


def test_a_client_that_distrusts_us_is_told_apart(other_authority, site):
    client = Client(trusting(other_authority.pem))
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(client.step())
    server.handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.step(server.take())
    server.feed(client.outgoing.read())
    with pytest.raises(TlsFailure) as caught:
        server.handshake()
    assert (caught.value.reason, caught.value.detail) == ("client_alert", "tlsv1 alert unknown ca")


def test_an_alert_that_python_has_no_name_for_is_still_one(site):
    client = Client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(client.step() + b"\x15\x03\x03\x00\x02\x02\x78")
    with pytest.raises(TlsFailure) as caught:
        server.handshake()
    assert (caught.value.reason, caught.value.detail) == ("client_alert", "tlsv1 alert no application protocol")


def test_openssl_refuses_tls12_too(authority, site):
    context = trusting(authority.pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(Client(context).step())
    with pytest.raises(TlsFailure) as caught:
        server.handshake()
    assert caught.value.reason == "unsupported_protocol"
    assert server.take() == b"\x15\x03\x03\x00\x02\x02\x46"


# What the hello is refused for


def hello(context: ssl.SSLContext) -> ClientHello:
    result = Peek().feed(Client(context).step())
    assert isinstance(result, ClientHello)
    return result


@pytest.mark.parametrize("alpn", [(), ("h2",), ("http/1.1",), ("http/1.0",), ("spdy/3", "h2")])
def test_hellos_that_fit_pass(authority, alpn):
    check_hello(hello(trusting(authority.pem, *alpn)), BOTH)


@pytest.mark.parametrize(
    ("alpn", "protocols", "passes"),
    [
        (("foo",), BOTH, False),
        (("h3",), BOTH, False),
        (("h2",), frozenset({"http/1.1"}), False),
        (("h2", "http/1.1"), frozenset({"http/1.1"}), True),
        (("http/1.0",), frozenset({"http/1.1"}), True),
        (("http/1.0",), frozenset({"h2"}), False),
        ((), frozenset({"h2"}), False),
        ((), frozenset({"http/1.1"}), True),
    ],
)
def test_a_protocol_in_common_is_needed(authority, alpn, protocols, passes):
    seen = hello(trusting(authority.pem, *alpn))
    if passes:
        check_hello(seen, protocols)
        return
    with pytest.raises(TlsFailure) as caught:
        check_hello(seen, protocols)
    assert (caught.value.reason, caught.value.alert) == ("no_application_protocol", NO_APPLICATION_PROTOCOL_ALERT)


@pytest.mark.parametrize(
    ("seen", "reason", "description"),
    [
        (ClientHello(None, (), (0x0303,)), "unsupported_protocol", 70),
        (ClientHello(None, (), (0x0304,), finite_field=True), "no_shared_group", 40),
    ],
)
def test_old_versions_and_costly_groups_are_refused_at_no_cost(seen, reason, description):
    with pytest.raises(TlsFailure) as caught:
        check_hello(seen, BOTH)
    assert (caught.value.reason, caught.value.alert) == (reason, bytes((21, 3, 3, 0, 2, 2, description)))
    assert reason in FAILURES


@pytest.mark.parametrize(
    ("alert", "said"),
    [(UNRECOGNIZED_NAME_ALERT, "unrecognized name"), (NO_APPLICATION_PROTOCOL_ALERT, "no application protocol")],
)
def test_a_client_understands_our_raw_alerts(authority, alert, said):
    client = Client(trusting(authority.pem, "h2"))
    client.step()
    with pytest.raises(ssl.SSLError, match=said):
        client.step(alert)


def test_without_shares_openssl_asks_for_an_elliptic_curve_whatever_the_client_prefers(site):
    """What the peek relies on when it lets finite-field groups pass beside elliptic ones."""

    def extension(kind: int, content: bytes) -> bytes:
        return struct.pack("!HH", kind, len(content)) + content

    extensions = (
        extension(43, b"\x02\x03\x04")
        + extension(10, b"\x00\x06\x01\x04\x01\x00\x00\x17")  # ffdhe8192, ffdhe2048, P-256
        + extension(13, b"\x00\x02\x04\x03")
        + extension(51, b"\x00\x00")
    )
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    record = b"\x16\x03\x01" + struct.pack("!H", len(message)) + message
    seen = Peek().feed(record)
    assert isinstance(seen, ClientHello)
    assert not seen.finite_field
    server = TlsSession(TlsContexts().get(profile(site), BOTH))
    server.feed(record)
    assert server.handshake() is False
    assert b"\x00\x33\x00\x02\x00\x17" in server.take()


# Client certificates


def outcome(client: Client, server: TlsSession) -> str:
    """``passed``, or the reason for which the server refuses."""
    try:
        shake(client, server)
    except TlsFailure as failure:
        assert server.take() != b""
        return failure.reason
    return "passed"


@pytest.mark.parametrize(
    ("required", "shows", "expected"),
    [
        (True, "good", "passed"),
        (True, "nothing", "certificate_required"),
        (True, "expired", "bad_client_certificate"),
        (True, "foreign", "bad_client_certificate"),
        (False, "good", "passed"),
        (False, "nothing", "passed"),
        (False, "expired", "bad_client_certificate"),
        (False, "foreign", "bad_client_certificate"),
    ],
)
def test_client_certificates(authority, other_authority, site, tmp_path, required, shows, expected):  # noqa: PLR0917  # fixtures
    context = trusting(authority.pem)
    shown = {"good": authority.sign("client"), "expired": authority.sign("client", expired=True), "foreign": other_authority.sign("client")}
    if shows in shown:
        with_certificate(context, shown[shows], tmp_path)
    server = TlsSession(TlsContexts().get(profile(site, ClientCertificateRule(authority.pem, required)), BOTH))
    assert outcome(Client(context), server) == expected
    if expected == "passed":
        assert (server.client_certificate is not None) is (shows == "good")


def test_a_ticket_resumes_on_the_same_site_only(authority, site):
    contexts = TlsContexts()
    first, second = profile(site), profile(site, domain="b.example.com")
    context = trusting(authority.pem)
    client = Client(context)
    shake(client, TlsSession(contexts.get(first, BOTH)))
    session = client.tls.session
    assert session.has_ticket
    for each, resumed in ((first, True), (second, False)):
        server = TlsSession(contexts.get(each, BOTH))
        again = Client(context, session=session)
        shake(again, server)
        assert (server.resumed, again.tls.session_reused) == (resumed, resumed)


def test_no_ticket_leads_around_a_client_certificate(authority, site, tmp_path):
    """Neither one of a site without the rule, nor one of a site that only asks, nor an own one: a protected site gives none."""
    contexts = TlsContexts()
    protected = contexts.get(profile(site, ClientCertificateRule(authority.pem, required=True)), BOTH)
    bare = trusting(authority.pem)
    for rule in (None, ClientCertificateRule(authority.pem, required=False)):
        client = Client(bare)
        shake(client, TlsSession(contexts.get(profile(site, rule), BOTH)))
        assert outcome(Client(bare, session=client.tls.session), TlsSession(protected)) == "certificate_required"
    certified = with_certificate(trusting(authority.pem), authority.sign("client"), tmp_path)
    client = Client(certified)
    shake(client, TlsSession(protected))
    assert client.tls.session is None or not client.tls.session.has_ticket
    server = TlsSession(protected)
    shake(Client(certified, session=client.tls.session), server)
    assert not server.resumed


def test_another_name_in_the_hello_changes_nothing_about_the_rule(authority, site):
    """The context is chosen before OpenSSL sees the name, and stays."""
    server = TlsSession(TlsContexts().get(profile(site, ClientCertificateRule(authority.pem, required=True)), BOTH))
    context = trusting(authority.pem)
    context.check_hostname = False
    assert outcome(Client(context, name="public.example.com"), server) == "certificate_required"


# Contexts


def test_contexts_are_made_at_publication_and_kept_over_a_reload(authority, site):
    contexts = TlsContexts()
    other = authority.sign("b.example.com")
    before = FakeSnapshot(
        {"a.example.com": profile(site)}, profile(other, domain="default"), BOTH, frozenset({"http/1.1"}), frozenset({"h3"})
    )
    contexts.build(before)
    kept = contexts.get(before.sni.exact["a.example.com"], BOTH)
    assert contexts.get(before.sni.exact["a.example.com"], BOTH) is kept
    assert contexts.get(before.sni.exact["a.example.com"], frozenset({"http/1.1"})) is not kept
    renewed = authority.sign("b.example.com")
    after = FakeSnapshot({"a.example.com": profile(site)}, profile(renewed, domain="default"), BOTH)
    contexts.build(after)
    assert contexts.get(after.sni.exact["a.example.com"], BOTH) is kept
    assert contexts.get(after.sni.default, BOTH) is not contexts.get(before.sni.default, BOTH)


def test_of_many_contexts_the_first_are_made_ahead_and_the_rest_by_their_first_handshake(authority, site, monkeypatch):
    monkeypatch.setattr(tls, "MADE_AHEAD", 2)
    made = []
    monkeypatch.setattr(tls, "_make", lambda profile, over, make=tls._make: made.append(profile.domain) or make(profile, over))
    contexts = TlsContexts()
    names = ["a.example.com", "b.example.com", "c.example.com"]
    snapshot = FakeSnapshot({name: profile(site, domain=name) for name in names}, profile(site, domain="default"), BOTH)
    contexts.build(snapshot)
    assert made == ["default", "a.example.com"]
    late = contexts.get(snapshot.sni.exact["c.example.com"], BOTH)
    shake(Client(trusting(authority.pem)), TlsSession(late))
    assert made == ["default", "a.example.com", "c.example.com"]
    contexts.build(snapshot)
    assert contexts.get(snapshot.sni.exact["c.example.com"], BOTH) is late
    assert made == ["default", "a.example.com", "c.example.com"]


def test_what_a_snapshot_no_longer_has_is_forgotten(authority, site):
    contexts = TlsContexts()
    for _ in range(5):
        default = profile(authority.sign("b.example.com"), domain="default")
        contexts.build(FakeSnapshot({"a.example.com": profile(site)}, default, BOTH))
        contexts.get(default, BOTH)
        assert (len(contexts._by_content), len(contexts._by_profile)) == (2, 3)


def test_material_that_openssl_refuses_leaves_the_contexts_as_they_were(authority, site):
    contexts = TlsContexts()
    good = FakeSnapshot({}, profile(site), BOTH)
    contexts.build(good)
    kept = contexts.get(good.sni.default, BOTH)
    other = authority.sign("b.example.com")
    mismatched = Certificate(("b.example.com",), other.chain, site.key, 0.0, "b.pem")
    bad = FakeSnapshot({"b.example.com": TlsProfile(mismatched, None, "b.example.com")}, profile(site), BOTH)
    with pytest.raises(ContextError, match=r"b\.example\.com \(certificate from b\.pem\): key values mismatch"):
        contexts.build(bad)
    assert contexts.get(good.sni.default, BOTH) is kept


@pytest.mark.parametrize("broken", ["chain", "key", "ca", "ca text"])
def test_broken_material_is_one_error(authority, site, broken):
    certificate = Certificate(("x",), b"" if broken == "chain" else site.chain, b"junk" if broken == "key" else site.key, 0.0, "x.pem")
    rule = ClientCertificateRule({"ca": b"junk", "ca text": b"\xff"}.get(broken, authority.pem), required=True)
    with pytest.raises(ContextError, match=r"x\.pem"):
        TlsContexts().get(TlsProfile(certificate, rule, "x"), BOTH)


def test_an_encrypted_key_is_an_error_and_no_question_at_the_terminal(site):
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # for this test alone

    key = serialization.load_pem_private_key(site.key, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ContextError, match="encrypted"):
        TlsContexts().get(TlsProfile(Certificate(("x",), site.chain, encrypted, 0.0, "x.pem"), None, "x"), BOTH)


def test_no_key_stays_on_a_disk_or_in_an_open_file(site, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    TlsContexts().get(profile(site), BOTH)
    after = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    assert len(after) == len(before)
    assert list(tmp_path.iterdir()) == []

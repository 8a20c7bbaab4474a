"""The accept path (peek, refusal, session) against ``openssl s_client`` over a socket."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from proxy.listen.peek import ClientHello, Peek
from proxy.listen.tls import UNRECOGNIZED_NAME_ALERT, TlsContexts, TlsFailure, TlsSession, check_hello
from proxy.sni import SniTable, TlsProfile

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs the openssl program")

BOTH = frozenset({"h2", "http/1.1"})
DEADLINE = 10.0


class EchoServer:
    """Does with one connection after another what a listener does, then echoes; ``seen`` tells how each went."""

    def __init__(self, table: SniTable) -> None:
        self._table = table
        self._contexts = TlsContexts()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Wait for the present connection and end."""
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(DEADLINE)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE)
                self.seen.append("started")
                self.seen[-1] = self._serve(connection)

    def _serve(self, connection: socket.socket) -> str:
        reader, result = Peek(), None
        while result is None:
            result = reader.feed(connection.recv(700))
        assert isinstance(result, ClientHello)
        profile = self._table.select(result.sni)
        if profile is None:
            connection.sendall(UNRECOGNIZED_NAME_ALERT)
            return "unrecognized_name"
        try:
            check_hello(result, BOTH)
        except TlsFailure as failure:
            connection.sendall(failure.alert)
            return failure.reason
        session = TlsSession(self._contexts.get(profile, BOTH))
        session.feed(reader.data)
        try:
            while not session.handshake():
                connection.sendall(session.take())
                session.feed(connection.recv(65536))
            connection.sendall(session.take())
            while not session.closed:
                data = session.read()
                session.write(data)
                connection.sendall(session.take())
                if not data and not session.closed:
                    session.feed(connection.recv(65536))
        except TlsFailure as failure:
            connection.sendall(session.take())
            return failure.reason
        session.close_notify()
        connection.sendall(session.take())
        return f"closed, alpn {session.alpn}, resumed {session.resumed}"


@pytest.fixture
def server(authority) -> Iterator[EchoServer]:
    profile = TlsProfile(authority.sign("a.example.com").certificate(), None, "a.example.com")
    running = EchoServer(SniTable({"a.example.com": profile}, {}, profile, refuse_unknown=True))
    yield running
    running.close()


def s_client(server: EchoServer, *options: str, say: bytes = b"", name: str = "a.example.com") -> str:
    command = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername", name, *options]
    result = subprocess.run(command, input=say, capture_output=True, timeout=DEADLINE, check=False)
    server.close()
    return (result.stdout + result.stderr).decode(errors="replace")


def test_an_echo_with_alpn(server):
    said = s_client(server, "-alpn", "h2,http/1.1", say=b"hello there\nQ\n")
    assert "Protocol  : TLSv1.3" in said or "New, TLSv1.3" in said
    assert "ALPN protocol: h2" in said
    assert server.seen == ["closed, alpn h2, resumed False"]


def test_small_fragments_and_key_updates(server):
    """s_client takes a line that begins with k or K for a command: new keys of its own; K asks for new ones of ours, too."""
    command = [OPENSSL, "s_client", "-no_ign_eof", "-max_send_frag", "512", "-connect", f"127.0.0.1:{server.port}"]
    command += ["-servername", "a.example.com"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        for line, answer in ((b"k", b"KEYUPDATE"), (b"one" * 400, b"one" * 400), (b"K", b"KEYUPDATE"), (b"two", b"two"), (b"2", b"2")):
            client.stdin.write(line + b"\n")
            client.stdin.flush()
            assert any(said == answer + b"\n" for said in client.stdout)
        client.communicate(b"Q\n", DEADLINE)
    server.close()
    assert server.seen == ["closed, alpn None, resumed False"]


def test_tls12_is_refused_with_protocol_version(server):
    said = s_client(server, "-tls1_2", say=b"Q\n")
    assert "alert protocol version" in said
    assert server.seen == ["unsupported_protocol"]


def test_an_unknown_name_is_refused_with_unrecognized_name(server):
    said = s_client(server, say=b"Q\n", name="unknown.example.com")
    assert "unrecognized name" in said
    assert server.seen == ["unrecognized_name"]


def test_no_protocol_in_common_is_refused(server):
    said = s_client(server, "-alpn", "foo", say=b"Q\n")
    assert "no application protocol" in said
    assert server.seen == ["no_application_protocol"]


def test_a_costly_group_is_refused(server):
    said = s_client(server, "-groups", "ffdhe8192", say=b"Q\n")
    assert "handshake failure" in said
    assert server.seen == ["no_shared_group"]


def test_a_ticket_of_s_client_resumes(authority, tmp_path):
    profile = TlsProfile(authority.sign("a.example.com").certificate(), None, "a.example.com")
    running = EchoServer(SniTable({}, {}, profile, refuse_unknown=False))
    ticket = str(tmp_path / "session.pem")
    try:
        for option in ("-sess_out", "-sess_in"):
            command = [OPENSSL, "s_client", "-quiet", "-no_ign_eof", "-connect", f"127.0.0.1:{running.port}", option, ticket]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
                client.stdin.write(b"hello\n")
                client.stdin.flush()
                assert client.stdout.readline() == b"hello\n"  # the tickets came before it
                client.communicate(b"Q\n", DEADLINE)
    finally:
        running.close()
    assert running.seen == ["closed, alpn None, resumed False", "closed, alpn None, resumed True"]

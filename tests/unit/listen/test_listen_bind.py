"""What listeners' sockets are set to, as the kernel has it."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.listen.accept import BACKLOG
from proxy.listen.bind import (
    FAST_OPEN_QUEUE,
    IP_MTU_DISCOVER,
    IP_PKTINFO,
    IPV6_MTU_DISCOVER,
    PMTUDISC_PROBE,
    SO_RCVBUFFORCE,
    Buffers,
    bind_tcp,
    bind_udp,
    may_force_buffers,
    prepare_tcp,
)

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_PACKET"), reason="options of Linux")

KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]
FAST_OPEN = (socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)


def has(sock: socket.socket, *options: tuple[int, int, int]) -> bool:
    return [sock.getsockopt(level, name) for level, name, _ in options] == [value for _, _, value in options]


@pytest.fixture(params=["127.0.0.1", "::"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def accepted(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A listening socket, and a connection from it."""
    with closing(bind_tcp((host, 0))) as listening:
        listening.listen(BACKLOG)
        with socket.create_connection(("::1" if host == "::" else host, listening.getsockname()[1])):
            listening.setblocking(True)
            connection, _ = listening.accept()
            with connection:
                yield listening, connection


def test_tcp_listeners_and_their_connections(accepted: tuple[socket.socket, socket.socket], host: str) -> None:
    listening, connection = accepted
    assert has(
        listening, *KEEP_ALIVE, (socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE), (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    )
    assert has(connection, *KEEP_ALIVE), "it has them from the listening one"
    assert not listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT), "who is silent is seen, and timed"
    if host == "::":
        assert has(listening, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    (backlog,) = struct.unpack_from("=I", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64), 28)
    assert backlog == min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))


@pytest.mark.parametrize("shared", [False, True])
def test_only_those_of_a_group_share_their_port(host: str, *, shared: bool) -> None:
    for bind in (bind_tcp, bind_udp):
        with closing(bind((host, 0), shared=shared)) as sock:
            assert has(sock, (socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared)))


def test_a_socket_from_systemd_is_set_alike() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        prepare_tcp(sock)
        assert has(sock, *KEEP_ALIVE, FAST_OPEN)
        assert not sock.getblocking()


def test_udp_is_not_fragmented_and_tells_the_destination(host: str) -> None:
    with closing(bind_udp((host, 0))) as sock:
        assert has(sock, (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE), (socket.IPPROTO_IP, IP_PKTINFO, 1))
        if host == "::":
            assert has(
                sock,
                (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE),
                (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1),
                (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0),
            )


def test_both_families_come_to_one_socket_for_all() -> None:
    with closing(bind_tcp(("::", 0))) as listening, socket.socket() as client:
        listening.listen()
        listening.setblocking(True)
        client.connect(("127.0.0.1", listening.getsockname()[1]))
        connection, source = listening.accept()
        connection.close()
        assert source[0] == "::ffff:127.0.0.1"
    with closing(bind_udp(("::", 0))) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        sock.setblocking(True)
        client.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
        assert sock.recvfrom(9)[1][0] == "::ffff:127.0.0.1"


@pytest.mark.skipif(not may_force_buffers(), reason="only who has CAP_NET_ADMIN may")
def test_root_has_buffers_as_large_as_it_wants() -> None:
    largest = max(int(Path(f"/proc/sys/net/core/{name}").read_text()) for name in ("rmem_max", "wmem_max"))
    buffers = Buffers(2 * largest, 3 * largest)
    with closing(bind_udp(("127.0.0.1", 0), buffers)) as sock:
        assert buffers.missed(sock) == []
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4 * largest
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 6 * largest


def test_who_may_force_buffers_is_found_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 100_000)
            allowed = True
        except PermissionError:
            allowed = False
    assert may_force_buffers() == allowed

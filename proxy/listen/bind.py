"""Sockets of listeners, bound and ready for use. Knows the standard library only: whoever holds the sockets of others need know no more."""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

Address = tuple[str, int]

FAST_OPEN_QUEUE = 256
"""Pending TCP Fast Open requests."""

KEEP_ALIVE = ((("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 60), (("TCP_KEEPINTVL",), 15), (("TCP_KEEPCNT",), 4))
"""TCP's own probes of a client from which nothing comes: after so many seconds, every so many, so many without an answer, with the names
that systems have for them. So a client that is gone without a word is kept for two minutes, also where its answer is slow to come."""

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
"""Linux's numbers (asm-generic/socket.h): buffers beyond what is allowed to everybody, for who has CAP_NET_ADMIN."""

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DONT, PMTUDISC_PROBE = 10, 23, 0, 3
"""Linux's numbers (linux/in.h, linux/in6.h). DONT: what is too large for a link is fragmented there; PROBE: datagrams are never
fragmented, whatever the kernel believes of the path."""

IP_MTU, IPV6_MTU = 14, 24
"""Linux's numbers, of a connected socket; Python does not name them."""

_LINUX = hasattr(socket, "AF_PACKET")

STRAYS_BUFFER = 1024 * 1024
"""Bytes that may wait for a worker to which others hand them over, as the kernel counts them: it gives what it allows."""

FIRST_INHERITED = 3
"""Descriptor of the first socket that systemd hands over (SD_LISTEN_FDS_START)."""

IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
"""Linux's number; Python names it from 3.14 on."""

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
"""Linux's numbers (linux/udp.h); Python does not name the last two."""


def bind_tcp(address: Address, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket, not yet listening; *shared*: one of a group on this address (SO_REUSEPORT). Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        prepare_tcp(sock)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_tcp(sock: socket.socket) -> None:
    """Set what a listening TCP socket and its connections need, which have it from there; bound or not. Raises OSError."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for names, value in KEEP_ALIVE:
        for name in names:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                break
    if hasattr(socket, "TCP_FASTOPEN"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of a socket's buffers."""

    receive: int = 4 * 1024 * 1024
    send: int = 4 * 1024 * 1024

    def missed(self, sock: socket.socket) -> list[str]:
        """A sentence for each that the kernel made smaller than this, with what would let it be."""
        wanted = ((socket.SO_RCVBUF, "receive", "rmem_max", self.receive), (socket.SO_SNDBUF, "send", "wmem_max", self.send))
        sentences = []
        for option, name, limit, size in wanted:
            got = sock.getsockopt(socket.SOL_SOCKET, option) // (2 if _LINUX else 1)  # Linux tells the double
            if got < size:
                sentences.append(f"the UDP {name} buffer has {got} of {size} bytes: sysctl -w net.core.{limit}={size} would allow it")
        return sentences


def bind_udp(address: Address, buffers: Buffers = Buffers(), *, shared: bool = False) -> socket.socket:  # it is frozen
    """A bound UDP socket that tells the destination of each datagram; *shared* as with TCP. Raises OSError.

    The kernel makes its *buffers* as large as it allows: ``Buffers.missed`` tells.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        prepare_udp(sock, buffers)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_udp(sock: socket.socket, buffers: Buffers) -> None:
    """Set what a UDP socket for QUIC needs, bound or not. Raises OSError.

    It has its *buffers*, tells the destination of each datagram, and has none fragmented (RFC 9000, section 14).
    """
    sock.setblocking(False)
    set_buffer(sock, socket.SO_RCVBUF, buffers.receive)
    set_buffer(sock, socket.SO_SNDBUF, buffers.send)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    if _LINUX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)  # of IPv6 sockets too: clients of IPv4 may come there
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)


def allow_fragments(sock: socket.socket) -> None:
    """Have datagrams cut where a link is too small for them: for envelopes, which are larger than what a client sent at its path's size."""
    if _LINUX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        if sock.family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)


def mtu_to(address: Address) -> int | None:
    """Bytes of the largest IP packet on the way to *address*, as far as the system knows it; None where it does not tell."""
    six = ":" in address[0]
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            return sock.getsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, IPV6_MTU if six else IP_MTU)
    except OSError:
        return None


def set_buffer(sock: socket.socket, option: int, size: int) -> bool:
    """Make the buffer of *option* as large: beyond ``net.core`` where that is allowed (root), which it tells, else as far as that goes."""
    if _LINUX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE if option == socket.SO_RCVBUF else SO_SNDBUFFORCE, size)
            return True
    sock.setsockopt(socket.SOL_SOCKET, option, size)
    return False


def may_force_buffers() -> bool:
    """Whether ``net.core.rmem_max`` and ``wmem_max`` bind this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return set_buffer(sock, socket.SO_RCVBUF, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2)


def bind_relay(family: socket.AddressFamily, buffers: Buffers) -> socket.socket:
    """A bound UDP socket from which a worker of the L4 tier sends envelopes, and to which their answers come. Raises OSError.

    The system chooses the port, and for each instance the address from which it is reached.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        set_buffer(sock, socket.SO_RCVBUF, buffers.receive)
        set_buffer(sock, socket.SO_SNDBUF, buffers.send)
        if _LINUX:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        allow_fragments(sock)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))  # noqa: S104  # see above
    except BaseException:
        sock.close()
        raise
    return sock


def pair_for_strays() -> tuple[socket.socket, socket.socket]:
    """The ends at which a worker receives what others hand over to it, and at which all of them send (``handover.py``). Raises OSError.

    A pair, since its queue is bounded by bytes alone: of other Unix sockets ten datagrams fill it (net.unix.max_dgram_qlen).
    """
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in (receiving, sending):
        sock.setblocking(False)
    set_buffer(sending, socket.SO_SNDBUF, STRAYS_BUFFER)
    return receiving, sending


def inherited(environ: MutableMapping[str, str]) -> dict[tuple[str, str, int], socket.socket]:
    """The sockets that systemd has bound for us (sd_listen_fds), by kind (``TCP``, ``UDP``), address and port.

    The variables are taken out of *environ*, so that no child takes them to be its own.
    """
    count, for_whom = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count.isdigit() or for_whom != str(os.getpid()):
        return {}
    found = {}
    for descriptor in range(FIRST_INHERITED, FIRST_INHERITED + int(count)):
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        sock.set_inheritable(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type in {socket.SOCK_STREAM, socket.SOCK_DGRAM}:
            host, port = sock.getsockname()[:2]
            found["TCP" if sock.type == socket.SOCK_STREAM else "UDP", host, port] = sock
    return found

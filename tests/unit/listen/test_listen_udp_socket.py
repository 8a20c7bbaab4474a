"""The UDP socket: addresses both ways, many datagrams with one call, and what happens when the kernel says no."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.engine.seam import Transmit
from proxy.listen.bind import SO_RCVBUFFORCE, SO_SNDBUFFORCE, Buffers, bind_udp, prepare_udp
from proxy.listen.udp_socket import MAX_SEGMENTED_BYTES, MAX_SEGMENTS, UdpSocket


class Pair:
    """A socket of ours bound to every address, and a client's."""

    def __init__(self, any_address: str, loopback: str) -> None:
        bound = bind_udp((any_address, 0))
        self.raw = bound
        self.ours = UdpSocket(bound, (any_address, bound.getsockname()[1]))
        self.client = socket.socket(socket.AF_INET6 if ":" in loopback else socket.AF_INET, socket.SOCK_DGRAM)
        self.client.bind((loopback, 0))
        self.client.settimeout(5)
        self.peer = (loopback, self.client.getsockname()[1])
        self.to = (loopback, bound.getsockname()[1])

    def close(self) -> None:
        self.ours.close()
        self.client.close()

    def take(self, count: int) -> list[bytes]:
        return [self.client.recv(65536) for _ in range(count)]


@pytest.fixture(params=[("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.0.0.7"), ("::", "::1"), ("::", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")])
def pair(request: pytest.FixtureRequest) -> Any:
    made = Pair(*request.param)
    yield made
    made.close()


def test_an_answer_leaves_from_the_address_that_was_asked(pair: Pair) -> None:
    pair.client.sendto(b"hello", pair.to)
    while not (batch := pair.ours.receive(64)):
        pass
    (datagram,) = batch
    assert (datagram.data, datagram.peer, datagram.local[1]) == (b"hello", pair.peer, pair.to[1])
    pair.ours.queue([Transmit(b"back", datagram.peer, datagram.local)])
    assert pair.ours.send()
    data, source = pair.client.recvfrom(100)
    assert (data, source[:2]) == (b"back", pair.to)


def test_datagrams_of_one_size_go_as_one_and_arrive_as_they_were(pair: Pair) -> None:
    datagrams = [bytes([number]) * 1200 for number in range(30)] + [b"short"] + [b"a" * 700, b"b" * 1200, b"c" * 1200]
    pair.ours.queue([Transmit(data, pair.peer, pair.to) for data in datagrams])
    assert pair.ours.send()
    assert pair.take(len(datagrams)) == datagrams
    assert (pair.ours.sent, pair.ours.failed, len(pair.ours)) == (len(datagrams), 0, 0)


class Kernel:
    """A socket that counts calls and fails as it is told."""

    def __init__(self, sock: socket.socket, error: OSError | None, *, segments_only: bool) -> None:
        self._sock = sock
        self._error = error
        self._segments_only = segments_only
        self.calls: list[int] = []

    def sendmsg(self, buffers: list[bytes], control: Any, flags: int, address: Any) -> int:
        self.calls.append(len(buffers))
        if self._error is not None and (len(buffers) > 1 or not self._segments_only):
            raise self._error
        return self._sock.sendmsg(buffers, control, flags, address)

    def sendto(self, data: bytes, address: Any) -> int:
        self.calls.append(1)
        if self._error is not None and not self._segments_only:
            raise self._error
        return self._sock.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.fixture
def one() -> Any:
    made = Pair("127.0.0.1", "127.0.0.1")
    yield made
    made.close()


def test_one_call_takes_many_datagrams_and_not_more_than_the_kernel_allows(one: Pair) -> None:
    kernel = one.ours._sock = Kernel(one.raw, None, segments_only=False)  # type: ignore[assignment]
    one.ours.queue([Transmit(b"x" * 100, one.peer, one.to)] * (MAX_SEGMENTS + 3))
    one.ours.queue([Transmit(b"y" * 1200, one.peer, one.to)] * 60)
    assert one.ours.send()
    assert kernel.calls == [MAX_SEGMENTS, 3, 54, 6]


@pytest.mark.parametrize("size", [MAX_SEGMENTED_BYTES, MAX_SEGMENTED_BYTES + 1, 65507])
def test_a_datagram_goes_once_that_is_larger_than_a_call_may_cut_apart(one: Pair, size: int) -> None:
    one.ours.queue([Transmit(b"x" * size, one.peer, one.to), Transmit(b"next", one.peer, one.to)])
    assert one.ours.send()
    assert [len(data) for data in one.take(2)] == [size, 4]
    assert (one.ours.sent, one.ours.failed) == (2, 0)


def test_clients_are_never_mixed(one: Pair) -> None:
    kernel = one.ours._sock = Kernel(one.raw, None, segments_only=False)  # type: ignore[assignment]
    other = (one.peer[0], one.to[1])
    one.ours.queue([Transmit(b"x", peer, one.to) for peer in (one.peer, one.peer, other, one.peer)])
    assert one.ours.send()
    assert kernel.calls == [2, 1, 1]
    assert one.take(3) == [b"x"] * 3


def test_where_the_kernel_has_no_segmentation_they_go_one_by_one(one: Pair) -> None:
    kernel = one.ours._sock = Kernel(one.raw, OSError(5, "Input/output error"), segments_only=True)  # type: ignore[assignment]
    one.ours.queue([Transmit(b"x" * 100, one.peer, one.to)] * 4)
    assert one.ours.send()
    assert kernel.calls == [4, 1, 1, 1, 1]
    assert one.take(4) == [b"x" * 100] * 4


def test_a_full_socket_keeps_what_is_left_in_order(one: Pair) -> None:
    one.ours._sock = Kernel(one.raw, BlockingIOError(), segments_only=False)  # type: ignore[assignment]
    one.ours.queue([Transmit(bytes([number]), one.peer, one.to) for number in range(5)])
    assert not one.ours.send()
    assert len(one.ours) == 5
    one.ours._sock = one.raw
    assert one.ours.send()
    assert one.take(5) == [bytes([number]) for number in range(5)]


def test_a_peer_that_can_t_be_reached_costs_its_own_datagrams_only(one: Pair) -> None:
    one.ours._sock = Kernel(one.raw, OSError(113, "No route to host"), segments_only=False)  # type: ignore[assignment]
    one.ours.queue([Transmit(b"x", one.peer, one.to)] * 2)
    assert one.ours.send()
    assert (one.ours.sent, one.ours.failed, len(one.ours)) == (0, 2, 0)


class Unprivileged(socket.socket):
    """One of who has no CAP_NET_ADMIN."""

    def setsockopt(self, level: int, name: int, value: Any, *more: int) -> None:
        if level == socket.SOL_SOCKET and name in {SO_RCVBUFFORCE, SO_SNDBUFFORCE}:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().setsockopt(level, name, value, *more)


def test_a_buffer_that_the_kernel_makes_smaller_is_told_with_what_would_let_it_be() -> None:
    largest = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="ascii"))
    buffers = Buffers(receive=2 * largest, send=64 * 1024)
    sock = Unprivileged(socket.AF_INET, socket.SOCK_DGRAM)
    prepare_udp(sock, buffers)
    try:
        assert buffers.missed(sock) == [
            f"the UDP receive buffer has {largest} of {2 * largest} bytes: sysctl -w net.core.rmem_max={2 * largest} would allow it"
        ]
        assert Buffers(64 * 1024, 64 * 1024).missed(sock) == []
    finally:
        sock.close()


def test_what_the_kernel_drops_of_a_full_socket_is_told() -> None:
    sock = bind_udp(("127.0.0.1", 0), Buffers(receive=64 * 1024))
    ours = UdpSocket(sock, sock.getsockname())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(1000):
            client.sendto(bytes(1200), sock.getsockname())
    read = 0
    while batch := ours.receive(64):
        read += len(batch)
    assert 0 < read < 1000
    assert ours.kernel_drops() == 1000 - read
    ours.close()

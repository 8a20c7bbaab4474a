"""A path that is not a loopback: a UDP relay that loses, swaps and moves, by a seed.

Stands between clients and the proxy as a NAT does: each client address has a socket of its own towards the proxy, and ``rebind`` gives
it a new one. Runs on a thread of its own, so that clients that block can use it as well.
"""

import random
import selectors
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

HELD = 0.02
"""Seconds that a datagram which is to be overtaken waits at most for others to do so."""

TICK = 0.002
"""Seconds between looks at what is under way."""

BUFFER = 4 * 1024 * 1024
"""Of each socket, so that what is lost is lost by the seed."""


@dataclass(frozen=True, slots=True)
class Path:
    """What a relay does, each way: the shares are of all datagrams, 0 to 1."""

    loss: float = 0.0
    reorder: float = 0.0
    overtaken_by: int = 3
    """Datagrams that pass one which is reordered."""
    size: int = 65536
    """Bytes of the largest datagram that passes."""
    delay: float = 0.0
    """Seconds on the way."""


class _Way:
    """One direction between one client and the proxy."""

    def __init__(self, path: Path, chances: random.Random) -> None:
        self._path, self._chances = path, chances
        self._held: list[tuple[int, bytes]] = []  # how many more may overtake it
        self._under_way: deque[tuple[float, bytes]] = deque()
        self.size = path.size
        self.lost = self.swapped = self.passed = self.bytes = self.largest = 0

    def pass_on(self, data: bytes, send: socket.socket, to: tuple[str, int] | None) -> None:
        if len(data) > self.size:
            self.lost += 1
            return
        chance = self._chances.random()
        if chance < self._path.loss:
            self.lost += 1
            return
        if self._path.delay:
            self._under_way.append((time.monotonic() + self._path.delay, data))
            return
        if chance < self._path.loss + self._path.reorder:
            self.swapped += 1
            self._held.append((self._path.overtaken_by, data))
            return
        self._send(data, send, to)
        self._held = [(left - 1, held) for left, held in self._held]
        while self._held and self._held[0][0] <= 0:
            self._send(self._held.pop(0)[1], send, to)

    def arrive(self, now: float, send: socket.socket, to: tuple[str, int] | None) -> None:
        """What has been on its way long enough."""
        while self._under_way and self._under_way[0][0] <= now:
            self._send(self._under_way.popleft()[1], send, to)

    def release(self, send: socket.socket, to: tuple[str, int] | None) -> None:
        """Nobody came to overtake."""
        while self._held:
            self._send(self._held.pop(0)[1], send, to)

    def _send(self, data: bytes, send: socket.socket, to: tuple[str, int] | None) -> None:
        self.passed += 1
        self.bytes += len(data)
        self.largest = max(self.largest, len(data))
        try:
            send.send(data) if to is None else send.sendto(data, to)
        except OSError:
            self.lost += 1  # the other side is gone, as on any path


@dataclass(slots=True)
class _Mapping:
    """One client as the proxy sees it."""

    client: tuple[str, int]
    outside: socket.socket
    to_proxy: _Way
    to_client: _Way


class Relay:
    """``with Relay(proxy.port, Path(loss=0.05), seed=7) as relay:``, and clients connect to ``relay.port``."""

    def __init__(self, port: int, path: Path | None = None, *, seed: int = 1) -> None:
        self._proxy = ("127.0.0.1", port)
        self._host = "127.0.0.1"
        self._path = path or Path()
        self._chances = random.Random(seed)
        self._inside = _socket()
        self._inside.bind(("127.0.0.1", 0))
        self.port: int = self._inside.getsockname()[1]
        self._mappings: dict[tuple[str, int], _Mapping] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inside, selectors.EVENT_READ)
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._commands: list[str] = []
        self._done = threading.Event()
        self._deaf_until = 0.0
        self.look: Callable[[bytes, tuple[str, int], bool], object] = lambda _data, _outside, _to_proxy: None
        """Sees each datagram before anything becomes of it, with the address that the proxy has or knows it by; on the relay's thread."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell("end")
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def lost(self) -> int:
        """Datagrams, both ways."""
        return sum(mapping.to_proxy.lost + mapping.to_client.lost for mapping in list(self._mappings.values()))

    @property
    def swapped(self) -> int:
        return sum(mapping.to_proxy.swapped + mapping.to_client.swapped for mapping in list(self._mappings.values()))

    @property
    def passed(self) -> int:
        return sum(mapping.to_proxy.passed + mapping.to_client.passed for mapping in list(self._mappings.values()))

    @property
    def bytes_to_clients(self) -> int:
        return sum(mapping.to_client.bytes for mapping in list(self._mappings.values()))

    @property
    def largest_to_clients(self) -> int:
        """Bytes of the largest datagram that passed."""
        return max((mapping.to_client.largest for mapping in list(self._mappings.values())), default=0)

    def rebind(self, host: str | None = None) -> None:
        """From now on every client has another port towards the proxy, and the address *host*; what comes to the old one is lost."""
        self._host = host or self._host
        self._done.clear()
        self._tell("rebind")
        assert self._done.wait(10)

    def move_new(self, host: str) -> None:
        """Clients that come from now on, and ports that they change to, have the address *host* towards the proxy; others stay."""
        self._host = host

    def lead_to(self, port: int) -> None:
        """From now on all clients get to the proxy at *port*, which sees each with the port that the one before saw."""
        self._proxy = ("127.0.0.1", port)
        for mapping in list(self._mappings.values()):
            mapping.outside.connect(self._proxy)

    def fall_deaf(self, seconds: float) -> None:
        """Lose everything for so long, whichever way it goes: a tunnel."""
        self._deaf_until = time.monotonic() + seconds

    def shrink(self, size: int) -> None:
        """From now on larger datagrams are lost, both ways and without a word."""
        self._path = replace(self._path, size=size)
        for mapping in list(self._mappings.values()):
            mapping.to_proxy.size = mapping.to_client.size = size

    def _tell(self, command: str) -> None:
        self._commands.append(command)
        self._waker.send(b"!")

    def _run(self) -> None:
        try:
            while True:
                ready = self._selector.select(TICK if self._path.delay else HELD)
                if self._path.delay:
                    self._arrive()
                elif not ready:
                    self._release()
                for key, _ in ready:
                    if key.fileobj is self._woken:
                        self._woken.recv(64)
                        while self._commands:
                            if self._commands.pop(0) == "end":
                                return
                            self._rebind()
                    elif key.fileobj is self._inside:
                        self._from_client()
                    else:
                        self._from_proxy(key.data)
        finally:
            for mapping in self._mappings.values():
                mapping.outside.close()
            for sock in (self._inside, self._waker, self._woken, self._selector):
                sock.close()

    def _from_client(self) -> None:
        data, address = self._inside.recvfrom(65536)
        mapping = self._mappings.get(address)
        if mapping is None:
            ways = _Way(self._path, self._chances), _Way(self._path, self._chances)
            mapping = self._mappings[address] = _Mapping(address, self._open(), *ways)
            self._selector.register(mapping.outside, selectors.EVENT_READ, mapping)
        self.look(data, mapping.outside.getsockname(), True)
        if not self._lost_in_tunnel(mapping.to_proxy):
            mapping.to_proxy.pass_on(data, mapping.outside, None)

    def _from_proxy(self, mapping: _Mapping) -> None:
        try:
            data = mapping.outside.recv(65536)
        except OSError:
            return  # an ICMP error of an earlier send
        self.look(data, mapping.outside.getsockname(), False)
        if not self._lost_in_tunnel(mapping.to_client):
            mapping.to_client.pass_on(data, self._inside, mapping.client)

    def _lost_in_tunnel(self, way: _Way) -> bool:
        if time.monotonic() >= self._deaf_until:
            return False
        way.lost += 1
        return True

    def _arrive(self) -> None:
        now = time.monotonic()
        for mapping in self._mappings.values():
            mapping.to_proxy.arrive(now, mapping.outside, None)
            mapping.to_client.arrive(now, self._inside, mapping.client)

    def _release(self) -> None:
        for mapping in self._mappings.values():
            mapping.to_proxy.release(mapping.outside, None)
            mapping.to_client.release(self._inside, mapping.client)

    def _rebind(self) -> None:
        for mapping in self._mappings.values():
            self._selector.unregister(mapping.outside)
            mapping.outside.close()
            mapping.outside = self._open()
            self._selector.register(mapping.outside, selectors.EVENT_READ, mapping)
        self._done.set()

    def _open(self) -> socket.socket:
        sock = _socket()
        sock.bind((self._host, 0))
        sock.connect(self._proxy)
        return sock


class Balancer(Relay):
    """Leads clients to one of several proxies by their addresses and ports alone, as most clouds' balancers for UDP do.

    Whoever changes one of these comes to another proxy, perhaps; and is sent only what comes from the one that it was led to.
    """

    def __init__(self, instances: Sequence[tuple[str, int]], path: Path | None = None) -> None:
        super().__init__(0, path)
        self._instances = tuple(instances)

    def leads_to(self) -> tuple[str, int]:
        """Where the one client there is, is led to now."""
        [mapping] = self._mappings.values()
        host, port = mapping.outside.getpeername()
        return host, port

    def spread(self, instances: Sequence[tuple[str, int]]) -> None:
        """From now on who comes, or changes his port, is led to one of these."""
        self._instances = tuple(instances)

    def move_elsewhere(self, host: str | None = None) -> None:
        """``rebind`` until the one client there is comes to another proxy."""
        before = self.leads_to()
        self.rebind(host)
        while self.leads_to() == before:
            self.rebind()

    def _choice(self, outside: tuple[str, int]) -> tuple[str, int]:
        return self._instances[zlib.crc32(repr(outside).encode()) % len(self._instances)]

    def _open(self) -> socket.socket:
        sock = _socket()
        sock.bind((self._host, 0))
        sock.connect(self._choice(sock.getsockname()))
        return sock


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    sock.setblocking(False)
    return sock

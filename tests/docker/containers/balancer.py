"""A balancer of the kind that clouds have for UDP: it knows 4-tuples and the health of its instances, and nothing of QUIC.

TCP connections and UDP flows go to an instance by a hash of the client's address and port, among those that answer /health with 200, on
the plain port. A flow stays with its instance while that answers at all; then it goes to another one. Runs on a thread of its own, on
loopback.
"""

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from containers.fleet import HEALTH_PORT, PORT

INTERVAL = 0.25
"""Seconds between two checks of an instance."""

PATIENCE = 2.0
"""Seconds that an instance has for the answer, and for a connection: many times what it takes where the machine is busy."""

FALL = 3
"""Checks without any answer after which an instance counts as gone. One that is, and has been taken for it, loses its QUIC connections."""

UP, DRAINING, GONE = "up", "draining", "gone"
BUFFER = 4 * 1024 * 1024


class Balancer:
    """``with Balancer(addresses) as balancer``: clients connect to 127.0.0.1:``balancer.port``, over TCP and UDP.

    ``checks=False``: those addresses are taken to be well. ``source``: our own address for TCP connections of the client at an address.
    """

    def __init__(self, addresses: Iterable[str], *, checks: bool = True, source: Callable[[str], str] = lambda _client: "0.0.0.0") -> None:
        self._checks, self._source = checks, source
        self.states = dict.fromkeys(addresses, UP)
        self.changes: list[tuple[float, str, str]] = []
        """What instances were found to be, and when (monotonic)."""
        self._misses: dict[str, int] = {}
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def follow(self, addresses: Iterable[str]) -> None:
        """These are the instances from now on; a new one has to answer first."""
        self.states = {address: self.states.get(address, GONE) for address in addresses}

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._tcp, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._inside = await self._datagrams(_Clients(self), local_addr=("127.0.0.1", self.port))
        checking = asyncio.ensure_future(self._check()) if self._checks else None
        self._ready.set()
        await self._end.wait()
        if checking is not None:
            checking.cancel()
        server.close()
        self._inside.close()
        for flow in self._flows.values():
            flow.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close a turn of the loop later

    async def _datagrams(self, protocol: "_Clients | _Flow", **where: tuple[str, int]) -> asyncio.DatagramTransport:
        transport, _ = await self._loop.create_datagram_endpoint(lambda: protocol, **where)
        sock = transport.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        return transport

    def pick(self, client: tuple[str, int], without: frozenset[str] = frozenset()) -> str | None:
        """The instance for a new connection: of highest score, by rendezvous hashing."""
        usable = [address for address, state in self.states.items() if state == UP and address not in without]
        return max(usable, key=lambda address: hashlib.sha256(f"{client} {address}".encode()).digest(), default=None)

    # Health

    async def _check(self) -> None:
        while True:
            await asyncio.gather(*(self._look(address) for address in list(self.states)))
            await asyncio.sleep(INTERVAL)

    async def _look(self, address: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(address, HEALTH_PORT)
                try:
                    writer.write(b"GET /health HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % address.encode())
                    status = (await reader.readline()).split(b" ")[1:2]
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            status = []
        self._misses[address] = 0 if status else self._misses.get(address, 0) + 1
        state = self.states.get(address)
        if state is not None:
            if status:
                state = UP if status == [b"200"] else DRAINING
            elif self._misses[address] >= FALL:
                state = GONE
            if state != self.states[address]:
                self.changes.append((time.monotonic(), address, state))
                self.states[address] = state

    # TCP

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, tried = writer.get_extra_info("peername")[:2], frozenset[str]()
        while (address := self.pick(client, tried)) is not None:
            try:
                async with asyncio.timeout(PATIENCE):
                    back, forth = await asyncio.open_connection(address, PORT, local_addr=(self._source(client[0]), 0))
            except (OSError, TimeoutError):
                tried |= {address}
                continue
            try:
                await asyncio.gather(_copy(reader, forth), _copy(back, writer))
            finally:
                forth.transport.abort()
            break
        writer.transport.abort()

    # UDP

    def from_client(self, data: bytes, client: tuple[str, int]) -> None:
        flow = self._flows.get(client)
        if flow is None or self.states.get(flow.instance, GONE) == GONE:
            instance = self.pick(client)
            if instance is None:
                return
            if flow is not None:
                flow.close()
            flow = self._flows[client] = _Flow(instance, client, self)
            self._loop.create_task(self._open(flow))
        flow.send(data)

    async def _open(self, flow: "_Flow") -> None:
        await self._datagrams(flow, remote_addr=(flow.instance, PORT))

    def to_client(self, data: bytes, client: tuple[str, int]) -> None:
        self._inside.sendto(data, client)


class _Clients(asyncio.DatagramProtocol):
    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._balancer.from_client(data, addr[:2])


class _Flow(asyncio.DatagramProtocol):
    def __init__(self, instance: str, client: tuple[str, int], balancer: Balancer) -> None:
        self.instance, self._client, self._balancer = instance, client, balancer
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # it is one
        self._transport = transport
        for data in self._waiting:
            transport.sendto(data)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._balancer.to_client(data, self._client)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error: nobody listens there now."""

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, or until somebody is gone: then the other side hears of it too."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (OSError, RuntimeError):
        writer.transport.abort()

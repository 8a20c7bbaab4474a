"""HTTP/3 on the product's engines and its two ways of datagrams, without admission, meters and logs."""

import asyncio
import time

from bench.floor.requests import Requests
from bench.floor.upstream import Pool
from proxy.engine.events import ConnectionClosed, ConnectionReady, Event
from proxy.engine.seam import Endpoint, Handle
from proxy.listen.bind import bind_udp
from proxy.listen.datagrams import Fast, Portable, is_fast
from proxy.listen.udp_socket import UdpSocket
from proxy.message import Headers
from proxy.observe import NullLog


class QuicClient(Requests):
    """One connection of a client."""

    def __init__(self, pool: Pool, listener: "UdpFloor", handle: Handle) -> None:
        super().__init__(pool)
        self.listener = listener
        self.endpoint = listener.endpoint
        self.handle = handle

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        self.endpoint.respond(self.handle, stream, status, headers, body)
        self.listener.want_flush()

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        self.endpoint.send_head(self.handle, stream, status, headers, end)
        self.listener.want_flush()

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        queued = self.endpoint.send_data(self.handle, stream, data, end)
        self.listener.want_flush()
        return queued

    def consumed(self, stream: int, credit: int) -> None:
        self.endpoint.consumed(self.handle, stream, credit)
        self.listener.want_flush()


class UdpFloor:
    """The socket, the endpoint and its connections."""

    def __init__(self, port: int, pool: Pool, endpoint: Endpoint) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.clients: dict[Handle, QuicClient] = {}
        sock = bind_udp(("127.0.0.1", port))
        self.descriptor = sock.fileno()
        self.address = sock.getsockname()
        self.datagrams = (
            Fast(endpoint, self.descriptor) if is_fast(endpoint) else Portable(endpoint, UdpSocket(sock, sock.getsockname()), NullLog())
        )
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.scheduled = self.full = False
        self.timer: asyncio.TimerHandle | None = None
        self.due = 0.0
        self.loop.add_reader(self.descriptor, self.readable)

    def readable(self) -> None:
        self.deliver(self.datagrams.receive(time.monotonic()))
        self.flush()

    def deliver(self, events: list[tuple[Handle, Event]]) -> None:
        for handle, event in events:
            kind = type(event)
            if kind is ConnectionReady:
                self.clients[handle] = QuicClient(self.pool, self, handle)
            elif kind is ConnectionClosed:
                client = self.clients.pop(handle, None)
                if client is not None:
                    client.lose()
            elif handle in self.clients:
                self.clients[handle].deliver(event)

    def want_flush(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self.scheduled = False
        while not self.full:
            if not self.datagrams.transmit(time.monotonic()):
                self.full = True
                self.loop.add_writer(self.descriptor, self.writable)
            events = self.endpoint.take_events()
            if not events:
                break
            self.deliver(events)
        self.set_timer()

    def writable(self) -> None:
        self.loop.remove_writer(self.descriptor)
        self.full = False
        self.flush()

    def set_timer(self) -> None:
        """A timer whose deadline moved on is left until it fires."""
        due = self.endpoint.deadline()
        if due is None or (self.timer is not None and self.due <= due):
            return
        if self.timer is not None:
            self.timer.cancel()
        self.due = due
        self.timer = self.loop.call_later(max(0.0, due - time.monotonic()), self.on_timer)

    def on_timer(self) -> None:
        self.timer = None
        self.deliver(self.endpoint.on_deadline(time.monotonic()))
        self.flush()


def listen(port: int, pool: Pool, endpoint: Endpoint) -> UdpFloor:
    """Serve *endpoint* on *port* of 127.0.0.1."""
    return UdpFloor(port, pool, endpoint)

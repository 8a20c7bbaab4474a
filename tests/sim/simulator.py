"""Two ends: one of our QUIC endpoints, aioquic's own client, and a link that delays, loses, reorders and rebinds.

The clock jumps to the next datagram or timer, and nothing sleeps: deterministic for a seed. An engine that looks at the system's clock by
itself (``engines.Engine.virtual_time``) is waited for until its own deadlines, and the run is as long as it says.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from aioquic.h3 import events as h3
from aioquic.h3.connection import H3Connection
from aioquic.quic import events as quic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import SessionTicket

from proxy.engine.events import Event
from proxy.engine.quic.settings import QuicSettings
from proxy.engine.seam import Datagram, EngineLimits
from proxy.keys import Keyring
from tests.sim.engines import AIOQUIC, Engine
from tests.sim.material import material, profile

SERVER = ("192.0.2.1", 443)
NUDGE = 1e-6  # what passes at least between two turns


@dataclass
class Link:
    """Seconds and shares; *jitter* reorders when it is more than the gap between datagrams."""

    latency: float = 0.005
    jitter: float = 0.0
    loss: float = 0.0
    seed: int = 1
    capacity: int = 1 << 30

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def delay(self) -> float | None:
        if self.loss and self.random.random() < self.loss:
            return None
        return self.latency + (self.random.random() * self.jitter if self.jitter else 0.0)


@dataclass
class Answer:
    """What a client got on one stream."""

    headers: list = field(default_factory=list)
    informational: list = field(default_factory=list)
    trailers: list = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    stopped: int | None = None

    @property
    def status(self) -> int:
        return int(dict(self.headers)[b":status"])


class Client:
    """aioquic's client, one connection."""

    def __init__(self, name: str = "a.example", address: tuple[str, int] = ("198.51.100.7", 4000), *, http: bool = True, **options) -> None:
        options.setdefault("alpn_protocols", ["h3"])
        configuration = QuicConfiguration(is_client=True, server_name=name, **options)
        configuration.load_verify_locations(cadata=material(name).chain_pem if name else None)
        self.address = address
        self.comes_to = SERVER
        """The server's address that its datagrams come to; what it sees of the server stays the same, as behind a balancer."""
        self.tickets: list[SessionTicket] = []
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=self.tickets.append)
        self.http = H3Connection(self.quic) if http else None
        self.answers: dict[int, Answer] = {}
        self.ready = self.resumed = False
        self.closed: quic.ConnectionTerminated | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_end: Callable[[int], None] = lambda _: None
        self.on_data: Callable[[int], None] = lambda _: None

    def request(self, path: bytes = b"/", method: bytes = b"GET", headers=(), body: bytes | None = None, end: bool = True) -> int:
        stream = self.quic.get_next_available_stream_id()
        fields = [(b":method", method), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", path), *headers]
        self.answers[stream] = Answer()
        self.http.send_headers(stream, fields, end and body is None)
        if body is not None:
            self.http.send_data(stream, body, end)
        return stream

    def drain(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, quic.HandshakeCompleted):
                self.ready = True
                self.resumed = event.session_resumed
                self.on_ready()
            elif isinstance(event, quic.ConnectionTerminated):
                self.closed = event
            elif isinstance(event, quic.StreamReset) and event.stream_id in self.answers:
                self.answers[event.stream_id].reset = event.error_code
            elif isinstance(event, quic.StopSendingReceived) and event.stream_id in self.answers:
                self.answers[event.stream_id].stopped = event.error_code
            for told in self.http.handle_event(event) if self.http else ():
                self._take(told)

    def _take(self, told) -> None:
        answer = self.answers.get(told.stream_id)
        if answer is None:
            return
        if isinstance(told, h3.HeadersReceived):
            if answer.headers:
                answer.trailers = told.headers
            elif dict(told.headers)[b":status"][:1] == b"1":
                answer.informational.append(told.headers)
            else:
                answer.headers = told.headers
        elif isinstance(told, h3.DataReceived):
            answer.body += told.data
            self.on_data(told.stream_id)
        if told.stream_ended:
            answer.ended = True
            self.on_end(told.stream_id)


class World:
    """The clock, the link, one endpoint and its clients. *serve* takes (handle, event) of the endpoint."""

    def __init__(
        self,
        link: Link | None = None,
        limits: EngineLimits | None = None,
        settings: QuicSettings | None = None,
        engine: Engine = AIOQUIC,
        **options,
    ) -> None:
        self.engine = engine
        self.link = link or Link()
        self.now = 0.0
        self.profiles = {"a.example": profile("a.example")}
        select = options.pop("select", self.profiles.get)
        self.endpoint = engine.load()(select, limits or EngineLimits(), settings or QuicSettings(), Keyring.alone(b"s" * 16), **options)
        self.clients: list[Client] = []
        self.serve: Callable[[int, Event], None] = lambda _handle, _event: None
        self.events: list[tuple[int, Event]] = []
        self.sent = 0
        self.sent_from: Counter = Counter()
        self.turns = 0
        self._queue: list = []
        self._order = 0
        self._in_flight = 0

    def connect(self, client: Client | None = None) -> Client:
        client = client or Client()
        client.quic.connect(SERVER, now=self.now)
        self.clients.append(client)
        return client

    def inject(self, data: bytes, peer=("203.0.113.9", 999)) -> None:
        """A datagram from nowhere, at once."""
        self._events(self.endpoint.receive([Datagram(data, peer, SERVER)], self.now))

    def run(self, until: Callable[[], bool] = lambda: False, seconds: float = 60.0, turns: int = 1_000_000) -> bool:
        """Run until *until* says so (True) or the time is over (False)."""
        limit = self.now + seconds
        for _ in range(turns):
            self.turns += 1
            self._transmit()
            if until():
                return True
            due = self._next()
            if due is None or due > limit:
                self.now = limit
                return until()
            self._wait(due)
            self._deliver()
            self._timers()
        raise AssertionError("the world doesn't come to rest")

    def _wait(self, due: float) -> None:
        if not self.engine.virtual_time and due > self.now:
            time.sleep(due - self.now)  # its timers run by the system's clock, from which it made *due*
        self.now = max(self.now + NUDGE, due)

    def _next(self) -> float | None:
        times = [self._queue[0][0]] if self._queue else []
        deadline = self.endpoint.deadline()
        if deadline is not None:
            times.append(deadline)
        times += [timer for client in self.clients if not client.closed and (timer := client.quic.get_timer()) is not None]
        return min(times, default=None)

    def _transmit(self) -> None:
        for client in self.clients:
            for data, _ in client.quic.datagrams_to_send(self.now):
                self._send(data, client, client.address)
        while True:
            datagrams = self.endpoint.take_datagrams(self.now)
            for transmit in datagrams:
                self.sent += 1
                self.sent_from[transmit.local] += 1
                client = next((client for client in self.clients if client.address == transmit.peer), None)
                if client is not None:
                    self._send(transmit.data, client, None)
            told = self.endpoint.take_events()
            self._events(told)
            if not datagrams and not told:
                return

    def _send(self, data: bytes, client: Client, source) -> None:
        delay = self.link.delay()
        if delay is not None and self._in_flight < self.link.capacity:
            self._order += 1
            self._in_flight += len(data)
            way = None if source is None else (source, client.comes_to)
            heapq.heappush(self._queue, (self.now + delay, self._order, data, client, way))

    def _deliver(self) -> None:
        batch = []
        while self._queue and self._queue[0][0] <= self.now:
            _, _, data, client, way = heapq.heappop(self._queue)
            self._in_flight -= len(data)
            if way is None:
                client.quic.receive_datagram(data, SERVER, self.now)
            else:
                batch.append(Datagram(data, *way))
        if batch:
            self._events(self.endpoint.receive(batch, self.now))
        for client in self.clients:
            client.drain()

    def _timers(self) -> None:
        deadline = self.endpoint.deadline()
        if deadline is not None and deadline <= self.now:
            self._events(self.endpoint.on_deadline(self.now))
        for client in self.clients:
            timer = client.quic.get_timer()
            if timer is not None and timer <= self.now:
                client.quic.handle_timer(self.now)
                client.drain()

    def _events(self, told) -> None:
        for handle, event in told:
            self.events.append((handle, event))
            self.serve(handle, event)

    def of(self, kind: type) -> list:
        return [event for _, event in self.events if isinstance(event, kind)]

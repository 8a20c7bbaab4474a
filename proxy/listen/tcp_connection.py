"""One client over TCP: PROXY protocol, the ClientHello peek, TLS, and an HTTP/1.1 or HTTP/2 engine.

A connection walks through its phases in that order, each with a deadline; after the handshake it is bytes to the engine, events to the
exchanges, and one flush for each turn of the loop. Decides nothing about requests.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from balancer.affinity import address_key
from proxy.deadlines import Expiring
from proxy.engine.h1 import H1Connection
from proxy.engine.seam import HIGH_WATER, HOLD, LOW_WATER, Connection
from proxy.errors import Reset
from proxy.listen.age import Age, begin_age
from proxy.listen.client import ClientStreams
from proxy.listen.peek import ClientHello, Malformed, Peek, PlainHttp
from proxy.listen.proxy_protocol import ProxyProtocolError, Reader
from proxy.listen.tls import (
    DECODE_ERROR_ALERT,
    INTERNAL_ERROR_ALERT,
    UNRECOGNIZED_NAME_ALERT,
    TlsFailure,
    TlsSession,
    check_hello,
)
from proxy.message import Headers, unmapped

if TYPE_CHECKING:
    from proxy.listen.tcp import TcpListener

FLUSH_BYTES = 128 * 1024
"""Body bytes taken from an engine at once, at most."""

FLUSH_ROUNDS = 16
"""Times in a row that one engine is asked for output before the other connections have their turn."""

LINGER = 2.0
"""Seconds that a client has to close its side once it was sent everything; and between looks at how it takes the rest."""

TAKEN_AT_LEAST = 16 * 1024
"""Bytes that a client takes in each idle timeout, while complete answers wait for it: with less it is cut."""


class TcpConnection(ClientStreams):
    """One client over TCP: an ``asyncio.Protocol`` by its methods. A subclass of it could not be compiled."""

    def __init__(self, owner: "TcpListener") -> None:
        super().__init__(owner.services, owner.listener, ("", 0))
        self.bucket: dict[Expiring, None] | None = None
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._phase: Callable[[bytes], None] = self._peeking
        self._peek: Peek | None = None
        self._proxy_reader: Reader | None = None
        self._tls: TlsSession | None = None
        self._engine: Connection | None = None
        self._age: Age | None = None
        self._admitted = False
        self._began = self._last_active = self.services.clock()
        self._head_since = 0.0
        self._leaving = False
        self._flush_bytes = FLUSH_BYTES
        self._flush_scheduled = False
        self._flush_follows = False  # or is under way
        self._one_by_one = False
        self._write_paused = False
        self._read_paused = False
        self._written = 0  # bytes given to the transport
        self._taken = 0  # of these, bytes that the client had when it was last looked at
        self._stuck_since = 0.0
        self._eof = False
        self._closing = False

    # Accept

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted by the kernel."""
        self._transport = cast("asyncio.Transport", transport)
        self._bound_transport(self._transport, self.services.output.bound)
        peer = transport.get_extra_info("peername")
        if not peer:  # it closed before accept
            self._transport.abort()
            return
        self.peer = (unmapped(peer[0].partition("%")[0]), peer[1])
        self._owner.connections.add(self)
        trusted = self.listener.proxy_protocol_from
        if trusted is not None and self.peer[0] in trusted:
            self._proxy_reader = Reader()
            self._phase = self._proxied
        elif not self._admit():
            return
        timeouts = self.services.snapshot.timeouts
        self.services.deadlines.set(self, self._began + timeouts.handshake)

    def _admit(self) -> bool:
        limit = self._owner.limits.admit(self.peer[0], self.services.clock())
        if limit is not None:
            self.services.log.debug("connection refused", limit=limit, client=self.peer[0])
            self._say_and_close(INTERNAL_ERROR_ALERT)
            return False
        self._admitted = True
        self.affinity_key = address_key(self.services.secret, self.peer[0])
        return True

    def data_received(self, data: bytes) -> None:
        """Bytes from the client. A plain protocol: a buffered one is called twice for each read, which small requests feel."""
        if self._closing:
            return
        try:
            self._phase(data)
        except Exception as error:  # noqa: BLE001  # one connection's fault is not its neighbours'
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """A fault of our own outside of any exchange."""
        self.services.log.error("a connection failed", client=self.peer[0], exc_info=error)
        self.abort()

    # Phases

    def _proxied(self, data: bytes) -> None:
        assert self._proxy_reader is not None
        try:
            header = self._proxy_reader.feed(data)
        except ProxyProtocolError as error:
            self.services.meters.handshake_failures.cell("tcp", "proxy_protocol").value += 1
            self.services.log.info("bad PROXY protocol header", peer=self.peer[0], detail=str(error))
            self.abort()
            return
        if header is None:
            return
        rest = self._proxy_reader.rest
        self._proxy_reader = None
        if header.source is not None:
            self.peer = header.source
        self._phase = self._peeking
        if self._admit() and rest:
            self._peeking(rest)

    def _peeking(self, data: bytes) -> None:
        if self._peek is None:
            self._peek = Peek()
        result = self._peek.feed(data)
        if result is None:
            return
        seen = self._peek.data
        self._peek = None
        if isinstance(result, ClientHello):
            self._begin_tls(result, seen)
        elif isinstance(result, PlainHttp):
            self._begin_engine(H1Connection(self.services.snapshot.limits.engine, scheme=b"http"))
            self._plain(seen)
        else:
            self._handshake_failed(result.reason, result.detail)
            if isinstance(result, Malformed):
                self._say_and_close(DECODE_ERROR_ALERT)
            else:
                self.abort()

    def _begin_tls(self, hello: ClientHello, seen: bytes) -> None:
        profile = self.services.snapshot.sni.select(hello.sni)
        if profile is None:
            self._handshake_failed("unrecognized_name", hello.sni or "")
            self._say_and_close(UNRECOGNIZED_NAME_ALERT)
            return
        try:
            check_hello(hello, self.listener.protocols)
        except TlsFailure as failure:
            self._handshake_failed(failure.reason, failure.detail)
            self._say_and_close(failure.alert)
            return
        self.services.meters.sni_resolutions.cell(profile.domain).value += 1
        self.tls = profile
        self.sni = hello.sni
        self._tls = TlsSession(self._owner.contexts.get(profile, self.listener.protocols))
        self._phase = self._handshaking
        self._handshaking(seen)

    def _handshaking(self, data: bytes) -> None:
        tls = self._tls
        assert tls is not None
        tls.feed(data)
        try:
            done = tls.handshake()
        except TlsFailure as failure:
            self._handshake_failed(failure.reason, failure.detail)
            self._write(tls.take())
            self._close()
            return
        self._write(tls.take())
        if not done:
            return
        now = self.services.clock()
        self.services.meters.handshake_seconds.cell("tcp").observe(now - self._began)
        self.services.meters.tls_resumed.cell().value += tls.resumed
        limits = self.services.snapshot.limits.engine
        self._begin_engine(self._owner.make_h2(limits) if tls.alpn == "h2" else H1Connection(limits))
        self._phase(b"")

    def _begin_engine(self, engine: Connection) -> None:
        self._engine = engine
        if self.services.output.over:
            engine.bound_output(self.services.output.bound)
        self._one_by_one = isinstance(engine, H1Connection)
        self.speaks(engine.version)
        meters = self.services.meters
        meters.connections.cell(self.listener.name, engine.version).value += 1
        meters.connections_open.cell(engine.version).value += 1
        self._phase = self._plain if self._tls is None else self._decrypt
        self._last_active = self.services.clock()
        self.services.deadlines.set(self, self._last_active + self.services.snapshot.timeouts.idle)
        # One word for HTTP/1.1, said with its next answer: an idle connection is left to the idle timeout, lest a request cross its end.
        self._age = begin_age(self.services, engine.version, self._too_old, 1 if self._one_by_one else 2)
        if not self.services.draining:
            return
        if self._one_by_one:
            self.goaway()  # says so with its first answer
        else:
            self._phase = self._late

    def _late(self, data: bytes) -> None:
        """HTTP/2 that came while the server drains: it hears so behind its first request.

        A client that hears GOAWAY before has nobody to send it to.
        """
        before = self._stream_count.value
        self._decrypt(data)
        if self._stream_count.value != before and self._phase == self._late:
            self.goaway()

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        self._read_decrypted(self._tls, data)

    def _read_decrypted(self, tls: TlsSession, data: bytes) -> None:
        settled = False
        try:
            plain = tls.decrypt(data)
            while plain:
                settled = self._serve(plain)
                if self._closing:
                    return
                plain = tls.read() if tls.pending else b""
        except TlsFailure as failure:
            self.services.meters.connection_errors.cell(self.version, "tls").value += 1
            self.services.log.debug("TLS failed within the connection", client=self.peer[0], reason=failure.reason)
            self._write(tls.take())
            self._close()
            return
        if tls.closed:
            self._ended()
        elif not settled:
            self._flush()

    def _plain(self, data: bytes) -> None:
        if not self._serve(data):
            self._flush()

    def _serve(self, data: bytes) -> bool:
        """Give the engine *data*, and its events to the exchanges. False where ``_flush`` has to follow."""
        engine = self._engine
        assert engine is not None
        now = self._last_active = self.services.clock()
        self._flush_follows = True
        events = engine.receive(data, now)
        for event in events:
            self.deliver(event)
        if engine.quiet and not self._read_paused:
            self._head_since = 0.0
            self._flush_follows = False
            return True
        if engine.head_in_progress:
            if events or not self._head_since:  # with events, this is another head than before
                self._head_since = now
                self.services.deadlines.set(self, now + self.services.snapshot.timeouts.header)
        else:
            self._head_since = 0.0
        return False

    def eof_received(self) -> bool:
        """The client closed its side of the connection.

        Over TLS that is all of it: who wants to listen on says close_notify and leaves the connection open (RFC 8446, section 6.1). The
        backends are not to work for nobody.
        """
        self._eof = True
        if self._engine is None or self._closing:
            return False
        try:
            self._ended()
            if self._tls is not None and self.exchanges:
                self.abort()
        except Exception as error:  # noqa: BLE001  # one connection's fault is not its neighbours'
            self._failed(error)
        return True

    def _ended(self) -> None:
        """No more requests come; what is running may finish where the protocol lets it."""
        engine = self._engine
        assert engine is not None
        for event in engine.receive_eof(self.services.clock()):
            self.deliver(event)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by either side."""
        self._transport = None
        self.services.deadlines.cancel(self)
        if self._age is not None:
            self.services.deadlines.cancel(self._age)
        self._owner.connections.discard(self)
        if self._engine is not None:
            self.services.meters.connections_open.cell(self.version).value -= 1
            self.lose_exchanges("connection lost" if exc is None else f"connection lost: {type(exc).__name__}")
        elif self._admitted and not self._closing and (self._tls is not None or self._peek is not None):
            self._handshake_failed("closed", "")  # it had begun: who connects and says nothing is a probe
        if self._admitted:
            self._admitted = False
            self._owner.limits.release(self.peer[0])
        self._closing = True

    # Output

    def pause_writing(self) -> None:
        """The client does not read as fast as we send."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """It caught up."""
        self._write_paused = False
        self._scheduled_flush()

    def _want_flush(self) -> None:
        """At the end of this turn of the loop: one write for all that the streams of this connection have then."""
        if not self._flush_scheduled and not self._flush_follows:
            self._schedule_flush()

    def _answered(self) -> None:
        """An answer is complete. On HTTP/1.1 no other one could share the write, so that it goes out within this turn (docs/design)."""
        if self._flush_follows:
            return
        if self._one_by_one:
            self._scheduled_flush()
        elif not self._flush_scheduled:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        self._flush_scheduled = True
        self._owner.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001  # one connection's fault is not its neighbours'
            self._failed(error)

    def _flush(self) -> None:
        """Send what the engine has, as far as the transport takes it."""
        engine, transport = self._engine, self._transport
        if engine is None or transport is None or self._closing or transport.is_closing():
            return
        rounds = 0
        self._flush_follows = True
        while not self._write_paused:
            if rounds == FLUSH_ROUNDS:
                self._flush_follows = False
                self._want_flush()
                return
            rounds += 1
            output = engine.take_output(self._flush_bytes)
            if output:
                data = output if self._tls is None else self._tls.encrypt(output)
                self._written += len(data)
                transport.write(data)
                if engine.quiet and not self._read_paused:
                    self._flush_follows = False
                    return
            events = engine.take_events()
            for event in events:
                self.deliver(event)
            if not events and len(output) < self._flush_bytes:
                break
        self._flush_follows = False
        if engine.finished and not self._write_paused:
            self._linger(engine)
            return
        wants = engine.wants_input
        if wants is self._read_paused and self._transport is not None:
            self._read_paused = not wants
            if wants:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    @property
    def output_bytes(self) -> int:
        """Bytes of answers that wait, here and in the transport; not what the kernel has."""
        engine, transport = self._engine, self._transport
        if transport is None:
            return 0
        return transport.get_write_buffer_size() + (0 if engine is None else engine.output_bytes)

    def bound_output(self, most: int) -> None:
        """Let *most* bytes of answers wait here, and no more than that in the transport."""
        engine, transport = self._engine, self._transport
        if engine is not None:
            engine.bound_output(most)
        if transport is not None and not transport.is_closing():
            self._bound_transport(transport, most)

    def _bound_transport(self, transport: asyncio.Transport, most: int) -> None:
        """One half may be there when the other is written."""
        half = most // 2
        self._flush_bytes = min(FLUSH_BYTES, half)
        transport.set_write_buffer_limits(high=min(HIGH_WATER, half), low=min(LOW_WATER, half // 2))

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._written += len(data)
            self._transport.write(data)

    def _say_and_close(self, data: bytes) -> None:
        self._write(data)
        self._close()

    def _close(self) -> None:
        """Close once the output is gone; a client that does not take it is cut. For connections that came to nothing."""
        if self._begin_closing() and self._transport is not None:
            self._transport.close()

    def _linger(self, engine: Connection) -> None:
        """Close when the output is gone and the client has closed too, or LINGER is over.

        To close with input unread makes the kernel reset the connection, and the client may lose the answer that it did not read yet:
        RFC 9112, section 9.6.
        """
        transport = self._transport
        if isinstance(engine, H1Connection) and engine.aborted and not self._closing and transport is not None:
            # the end of the connection may be the end of the body: only a reset says that it was cut short
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.abort()
        elif self._begin_closing() and transport is not None:
            if self._eof:
                transport.close()
            else:
                transport.write_eof()
                transport.resume_reading()

    def _begin_closing(self) -> bool:
        if self._closing or self._transport is None or self._transport.is_closing():
            return False
        self._closing = True
        if self._tls is not None:
            self._tls.close_notify()
            self._write(self._tls.take())
        self._last_active = self.services.clock()
        self._taken = self._written - _unsent(self._transport)
        self.services.deadlines.set(self, self._last_active + LINGER)
        return True

    def abort(self) -> None:
        """Cut the connection at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # Time

    def on_deadline(self, now: float) -> float | None:
        """The wheel asks; gives the next time to ask."""
        if self._transport is None:
            return None
        try:
            return self._check_time(self._transport, now)
        except Exception as error:  # noqa: BLE001  # the wheel turns for everybody
            self._failed(error)
            return None

    def _check_time(self, transport: asyncio.Transport, now: float) -> float | None:
        timeouts = self.services.snapshot.timeouts
        engine = self._engine
        if self._closing:
            unsent = _unsent(transport)
            if self._written - unsent > self._taken:
                self._taken = self._written - unsent
                self._last_active = now
            if now < self._last_active + (timeouts.idle if unsent else LINGER):
                return now + LINGER
            transport.abort()
            return None
        if engine is None:
            self._handshake_failed("timeout", "")
            self.abort()
            return None
        if self._head_since:
            due = self._head_since + timeouts.header
            if now >= due:
                self.services.meters.rejected.cell(self.version, "header_timeout").value += 1
                self._end_idle(engine)
                return None
            return due
        if self.exchanges:  # they have their own limits
            self._stuck_since = 0.0
            self._last_active = now
            return now + timeouts.idle
        unsent = transport.get_write_buffer_size()
        if engine.streams or unsent:  # complete answers, that wait for the client
            taken = self._written - unsent
            if not self._stuck_since or taken - self._taken >= TAKEN_AT_LEAST:
                self._stuck_since = now
                self._taken = taken
            due = self._stuck_since + timeouts.idle
            if now >= due:
                self.services.meters.connection_errors.cell(self.version, "write_timeout").value += 1
                self.abort()
                return None
            return due
        self._stuck_since = 0.0
        due = self._last_active + timeouts.idle
        if now >= due:
            self._end_idle(engine)
            return None
        return due

    def _end_idle(self, engine: Connection) -> None:
        """Say goodbye as the protocol does, then close."""
        engine.time_out()
        self._flush()
        self._linger(engine)

    def goaway(self) -> None:
        """Finish what is running and close: the server drains. In two calls, as the engine's."""
        if self._engine is not None:
            if self._phase == self._late:
                self._phase = self._decrypt
            self._engine.goaway()
            self._want_flush()
        elif self._leaving and self._tls is None:
            self.abort()  # not a whole ClientHello since the first call: nothing is lost
        self._leaving = True

    def _too_old(self) -> None:
        if self._closing:
            return
        try:
            self.goaway()
        except Exception as error:  # noqa: BLE001  # the wheel turns for everybody
            self._failed(error)

    def _handshake_failed(self, reason: str, detail: str) -> None:
        self.services.meters.handshake_failures.cell("tcp", reason).value += 1
        self.services.log.debug("handshake failed", client=self.peer[0], reason=reason, detail=detail)

    # The verbs of the engine, for exchanges

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """See ``engine/seam.py``, as for all of these."""
        assert self._engine is not None
        self._engine.respond(stream, status, headers, body)
        self._answered()

    def send_head(self, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A response head."""
        assert self._engine is not None
        self._engine.send_head(stream, status, headers, end)
        if end:
            self._answered()
        else:
            self._want_flush()

    def send_data(self, stream: int, data: bytes, end: bool) -> int:
        """Body bytes; returns what is queued for the stream."""
        assert self._engine is not None
        queued = self._engine.send_data(stream, data, end)
        if queued > LOW_WATER:
            self.services.output.queued(len(data))
            if queued >= HOLD:
                self._owner.holds += 1
        self._want_flush()
        return queued

    def send_trailers(self, stream: int, headers: Headers) -> None:
        """The end of a body, with trailers."""
        assert self._engine is not None
        self._engine.send_trailers(stream, headers)
        self._want_flush()

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response."""
        assert self._engine is not None
        self._engine.inform(stream, status, headers)
        self._want_flush()

    def consumed(self, stream: int, credit: int) -> None:
        """Credit for request body bytes."""
        assert self._engine is not None
        self._engine.consumed(stream, credit)
        self._want_flush()

    def reset(self, stream: int, reason: Reset) -> None:
        """Cut one stream."""
        assert self._engine is not None
        self.services.meters.stream_errors.cell(self.version, reason.value).value += 1
        self._engine.reset(stream, reason)
        self._want_flush()


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client has not acknowledged: in the transport, and in the kernel where it can be asked (Linux)."""
    unsent = transport.get_write_buffer_size()
    with contextlib.suppress(OSError):
        held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        unsent += int.from_bytes(held, sys.byteorder)
    return unsent

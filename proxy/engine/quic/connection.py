"""The transport of one client: aioquic's connection with its holes closed.

Knows aioquic's private parts, as ``sending`` does. Knows no HTTP. What differs from the base class, and why:

- connection IDs come from the endpoint, which has to know them;
- receive windows follow consumption (``flow``), and frames that bring nothing have a budget (``abuse``);
- CRYPTO data is bounded: the library keeps half a megabyte of it, and a ClientHello of up to 16 MB, for a client that nobody knows;
- so are the holes in a stream's bytes: the library walks its list of gaps for every frame.
"""

import math
from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import END_STATES, QuicConnectionError, QuicConnectionId, QuicConnectionState, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, pull_quic_transport_parameters
from aioquic.quic.stream import QuicStream, QuicStreamReceiver

from proxy.engine.h3_frames import NO_ERROR
from proxy.engine.quic.abuse import CONTROL_BURST, CONTROL_RATE, EARNED_BY_PACKET, RESET_BURST, RESET_RATE, Budget
from proxy.engine.quic.flow import DiscardingReceiver, ReceiveWindows
from proxy.engine.quic.gate import Arrival
from proxy.engine.quic.sending import Pacer
from proxy.engine.quic.sessions import Session
from proxy.engine.quic.strict import StrictConnection, peek
from proxy.engine.quic.tls import Identities, ServerContext
from proxy.engine.seam import EngineLimits

MAX_CRYPTO = {tls.Epoch.INITIAL: 16 * 1024, tls.Epoch.HANDSHAKE: 64 * 1024, tls.Epoch.ONE_RTT: 0}
"""Bytes of CRYPTO data by epoch: a ClientHello with the largest post-quantum key share has 2 KB; a client's certificate chain, some;
after the handshake a client has nothing to say (RFC 9001, section 6: no KeyUpdate)."""

UNI_STREAMS = 8
"""Unidirectional streams that a client may have open: HTTP/3 needs three, the rest is for extensions and grease."""

MIN_GAPS = 64
"""Holes in the received bytes of a stream, at least; a large window allows one for every packet that fits it."""

SMALL_FRAME = 16
"""STREAM frames that bring fewer bytes cost one of the control budget: a byte each is the dearest way to send a request."""

ACK_RANGES = 32
"""Ranges of an ACK that cost one of the control budget: clients that receive well send fewer."""

MAX_ACK_RANGES = 1024
"""More than a packet holds, whatever an ACK says."""

EXCESSIVE_LOAD = 0x107
"""H3_EXCESSIVE_LOAD (RFC 9114, section 8.1)."""

CONNECTION_IDS = 4
"""Connection IDs that a client has to choose from when it moves; it may ask for fewer."""


DISABLE_ACTIVE_MIGRATION = b"\x0c\x00"
"""A transport parameter (RFC 9000, section 18.2), which the library can only read."""


NO_FRAME_TYPE: Any = None
"""Makes a close an application's, whose codes are HTTP/3's (the library's annotation leaves it out)."""


class _Quiet:
    """Takes aioquic's log lines: it formats none, and a hostile packet writes to nobody's standard error."""

    def debug(self, *_: object) -> None:
        """Drop it."""

    info = warning = error = debug


_QUIET: Any = _Quiet()


class Transport(StrictConnection):
    """One QUIC connection, server side. ``mint`` gives a fresh connection ID with its stateless reset token.

    A client that answers a Retry has a validated address: from the start it is sent as much as congestion control allows (RFC 9000,
    section 8.1).
    """

    may_move = True
    """Whether the client may change its IP address; to be set before the first packet."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        identities: Identities,
        limits: EngineLimits,
        mint: Callable[[], tuple[bytes, bytes]],
        arrival: Arrival,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=arrival.original,
            retry_source_connection_id=arrival.retry_source,
        )
        self._logger = _QUIET
        self._loss._logger = None  # noqa: SLF001  # its lines are for people who debug aioquic
        self._loss._pacer = Pacer(max_datagram_size=configuration.max_datagram_size)  # noqa: SLF001
        self._identities = identities
        self._mint = mint
        first = self._host_cids[0]
        first.cid, first.stateless_reset_token = mint()
        self.host_cid = self._local_initial_source_connection_id = first.cid
        for limit, count in ((self._local_max_streams_bidi, limits.streams), (self._local_max_streams_uni, UNI_STREAMS)):
            limit.value = limit.sent = count
        self._windows = ReceiveWindows(limits.stream_window, limits.connection_window)
        self._max_gaps = max(MIN_GAPS, limits.stream_window // 1000)
        self._dropped: set[int] = set()  # abandoned since the last time that there were no events
        self._now = 0.0
        self._control = Budget(CONTROL_BURST, CONTROL_RATE)
        self._resets = Budget(RESET_BURST, RESET_RATE)
        self._resets_asked = 0
        self._cids_from = 0
        """The first connection ID that the client is not asked to retire, by its sequence number."""
        self._begin_sending()

    # For HTTP/3 and the endpoint

    def let_windows_grow(self, stream: int, connection: int) -> None:
        """The receive windows of each stream and of the connection may grow to so many bytes. Before the first packet."""
        self._windows.let_grow(stream, connection)
        self._max_gaps = max(self._max_gaps, stream // 1000)

    @property
    def session(self) -> Session | None:
        """What the ClientHello began; None before it."""
        context = self.tls
        return context.session if isinstance(context, ServerContext) else None

    @property
    def early(self) -> bool:
        """The handshake is not complete, and early data of the client is read."""
        return self.tls.early_data_accepted and not self._handshake_complete

    @property
    def begun(self) -> bool:
        """A packet of the client was authentic."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def close_event(self) -> events.ConnectionTerminated | None:
        """Why the connection is closed or about to be; None while it lives."""
        return self._close_event

    @property
    def terminated(self) -> bool:
        """The closing period is over as well."""
        return self._state in END_STATES and self._close_at is None

    def settled_path(self) -> Any:
        """The address in use once it is validated; None meanwhile."""
        path = self._network_paths[0]
        return path.addr if path.is_validated else None

    @property
    def heard_at(self) -> float:
        """When a packet of the client came that was newer than all before, since its handshake; 0 before the first."""
        return self._spaces[tls.Epoch.ONE_RTT].largest_received_time or 0.0

    def send(self, stream_id: int, data: bytes | memoryview, *, end: bool = False) -> bool:
        """Queue bytes; False where the stream takes none any more (it is finished or was reset)."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None or stream.sender._buffer_fin is not None:  # noqa: SLF001
            return False
        self.unsent_bytes += len(data)
        stream.sender.write(data, end)  # type: ignore[arg-type]  # it appends to a bytearray: any buffer will do
        if stream_id not in self._held:
            self._ready[stream_id] = stream
        return True

    def open_stream(self, data: bytes) -> int:
        """Open a unidirectional stream and queue *data* on it; its number."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=True)
        self._get_or_create_stream_for_send(stream_id)
        self.send(stream_id, data)
        return stream_id

    def unsent(self, stream_id: int) -> int:
        """Bytes queued here that were never sent."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset  # noqa: SLF001

    def room(self) -> int:
        """Bytes that the congestion window would take now."""
        return self._loss.congestion_window - self._loss.bytes_in_flight

    def cut(self, stream_id: int, code: int) -> None:
        """Reset the sending part, and drop what was queued."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self._cut(stream, code)

    def begin_anew(self) -> None:
        """The client is at another address: nothing that was learnt of the path holds for the new one (RFC 9000, section 9.4).

        What is in flight was sent to the old address: it is acknowledged or lost, and says nothing about the new path either way.
        """
        loss = self._loss
        for space in loss.spaces:
            for packet in space.sent_packets.values():
                packet.in_flight = False
        size = self._max_datagram_size
        loss._cc = create_congestion_control(self._configuration.congestion_control_algorithm, max_datagram_size=size)  # noqa: SLF001
        loss._pacer = Pacer(max_datagram_size=size)  # noqa: SLF001
        loss._pto_count = 0  # noqa: SLF001
        loss._rtt_initialized = False  # noqa: SLF001  # the next sample is taken for the first
        loss._rtt_min = math.inf  # noqa: SLF001

    def end_trace(self) -> None:
        """Tell the connection's trace no more. Not while packets are read or written."""
        self._quic_logger = self._loss._quic_logger = None  # noqa: SLF001

    def next_event(self) -> events.QuicEvent | None:
        """The next thing that happened; but what had come of a stream before it was abandoned is nobody's any more."""
        queue, dropped = self._events, self._dropped
        while queue:
            event = queue.popleft()
            if not (dropped and isinstance(event, events.StreamDataReceived) and event.stream_id in dropped):
                return event
        dropped.clear()
        return None

    def abandon(self, stream_id: int, code: int | None = None) -> None:
        """Read no more of a stream: its bytes are credited and dropped. With *code*, ask the client to stop."""
        if self._events:
            self._dropped.add(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            return
        if code is not None:
            self._resets_asked += code == NO_ERROR  # answered before its end: the client resets it because we say so
            stream.receiver.stop(code)
            self._ready[stream_id] = stream
        self._windows.credit(stream, stream.receiver.highest_offset)
        DiscardingReceiver.take_over(stream)
        self._settle(stream)

    def credit(self, stream_id: int, count: int) -> None:
        """*count* received bytes were consumed: let the client send as many more."""
        stream = self._streams.get(stream_id)
        if stream is not None and self._windows.credit(stream, count):
            self._limits_due[stream_id] = stream

    def spend_control(self) -> bool:
        """One control frame's worth; False once the budget is used up, and the connection is being closed."""
        if self._control.spend(self._now, EARNED_BY_PACKET * self._packet_number + self._limits_told):
            return True
        self.close(error_code=EXCESSIVE_LOAD, reason_phrase="too many control frames")
        return False

    def spend_reset(self) -> bool:
        """One reset's worth; as ``spend_control``."""
        if self._resets.spend(self._now, self._resets_asked):
            return True
        self.close(error_code=EXCESSIVE_LOAD, reason_phrase="too many resets")
        return False

    # Life

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """As the base class; the time is kept for the budgets."""
        self._now = now
        super().receive_datagram(data, addr, now)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self._retry_source_connection_id is not None:
            self._network_paths[0].is_validated = True
        context: Any = self.tls
        context.__class__ = ServerContext
        context.adopt(self._identities, self.original_destination_connection_id)

    def _update_traffic_key(self, direction: tls.Direction, epoch: tls.Epoch, cipher_suite: tls.CipherSuite, secret: bytes) -> None:
        context: Any = self.tls
        if epoch is tls.Epoch.ZERO_RTT and not context.takes_early_data():
            context.early_data_accepted = False  # the session is resumed all the same; the client sends it again
            return
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:  # noqa: FBT002  # the library's
        super()._parse_transport_parameters(data, from_session_ticket)
        size = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
        if size is not None:
            self._max_datagram_size = min(self._max_datagram_size, size)

    def _serialize_transport_parameters(self) -> bytes:
        parameters: bytes = super()._serialize_transport_parameters()
        return parameters if self.may_move else parameters + DISABLE_ACTIVE_MIGRATION

    def renew_connection_ids(self) -> None:
        """Give the client other connection IDs, and have it retire those that it has; not before the handshake is complete.

        All that are new ask for it: the client is never left without one, whichever comes first (RFC 9000, section 5.1.2).
        """
        self._cids_from = self._host_cid_seq
        self._replenish_connection_ids()

    @property
    def retiring(self) -> bool:
        """The client has connection IDs that it was asked to retire."""
        return self._host_cids[0].sequence_number < self._cids_from  # they stand in order

    def expect(self, cid_bytes: int) -> None:
        """The next datagram's connection ID has so many bytes, as far as its header does not tell."""
        self._configuration.connection_id_length = cid_bytes  # which the library reads nowhere else any more

    def _replenish_connection_ids(self) -> None:
        usable = sum(cid.sequence_number >= self._cids_from for cid in self._host_cids)
        for _ in range(min(CONNECTION_IDS, self._remote_active_connection_id_limit) - usable):
            cid, token = self._mint()
            self._host_cids.append(QuicConnectionId(cid=cid, sequence_number=self._host_cid_seq, stateless_reset_token=token))
            self._host_cid_seq += 1

    # Frames in

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        opened = self._local_max_streams_bidi.used
        stream = super()._get_or_create_stream(frame_type, stream_id)
        self.requests_open += self._local_max_streams_bidi.used - opened
        return stream

    def _cut(self, stream: QuicStream, code: int) -> None:
        sender = stream.sender
        sender.reset(code)
        self.unsent_bytes -= sender._buffer_stop - sender.highest_offset  # noqa: SLF001
        sender._buffer_stop = sender.highest_offset  # noqa: SLF001
        sender._buffer.clear()  # noqa: SLF001  # nothing of it is sent any more
        self._prepare(stream)

    def _charge(self) -> None:
        if not self.spend_control():
            raise _excessive_load("too many control frames")

    def _charge_reset(self) -> None:
        if not self.spend_reset():
            raise _excessive_load("too many resets")

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge()
        offset, length = peek(buf, 2)
        if offset + length > MAX_CRYPTO[context.epoch] and (offset or context.epoch is not tls.Epoch.ONE_RTT):
            raise _too_much_crypto(frame_type, "too much handshake data")
        super()._handle_crypto_frame(context, frame_type, buf)
        if len(self._crypto_streams[context.epoch].receiver._ranges) > MIN_GAPS:  # noqa: SLF001
            raise _too_much_crypto(frame_type, "too many gaps in handshake data")
        if self._handshake_complete and self._crypto_buffers:
            self._forget_handshake()

    def _forget_handshake(self) -> None:
        """The client's Finished has come: what TLS wrote into and what was sent again until then is of no more use.

        The library keeps three buffers of 16 KiB and the server's flight for as long as the connection lives, most of what an idle one
        takes. Nothing is written into them any more: a client may say nothing more by CRYPTO, and its tickets are on their way.
        """
        self._crypto_buffers = {}
        for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
            self._crypto_streams[epoch].sender._buffer.clear()  # noqa: SLF001

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        _, _, ranges = peek(buf, 3)
        for _ in range(1 + min(ranges, MAX_ACK_RANGES) // ACK_RANGES):
            self._charge()
        super()._handle_ack_frame(context, frame_type, buf)

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = _peek(buf)
        stream = self._streams.get(stream_id)
        highest = held = 0
        if stream is not None:
            highest, held = stream.receiver.highest_offset, _held(stream.receiver)
        if stream is None and self._stream_is_discarded(stream_id):
            self._charge()
        super()._handle_stream_frame(context, frame_type, buf)
        stream = self._streams[stream_id]
        receiver = stream.receiver
        if (
            receiver.highest_offset - highest < SMALL_FRAME
            and not receiver.is_finished
            and _held(receiver) - held < SMALL_FRAME  # what was lost on the way and is sent again fills a hole
        ):
            self._charge()  # it brought next to nothing: tiny, empty, double
        if len(receiver._ranges) > self._max_gaps:  # noqa: SLF001
            raise _excessive_load("too many gaps in a stream")
        if isinstance(receiver, DiscardingReceiver):
            self._windows.credit(stream, receiver.highest_offset)
        if receiver.is_finished:
            self._settle(stream)

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge_reset()
        stream_id = _peek(buf)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        stream = self._streams[stream_id]
        self._windows.credit(stream, stream.receiver.highest_offset)
        self._settle(stream)

    def _handle_stop_sending_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge_reset()
        stream_id = _peek(buf)
        super()._handle_stop_sending_frame(context, frame_type, buf)
        stream = self._streams[stream_id]
        if stream.sender.reset_pending:
            self._cut(stream, 0)  # the library has set the code already: what is queued goes

    def _handle_max_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge()
        super()._handle_max_data_frame(context, frame_type, buf)
        self._ready.update(self._held)
        self._held.clear()

    def _handle_max_stream_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge()
        stream_id = _peek(buf)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        stream = self._held.pop(stream_id, None)
        if stream is not None:
            self._ready[stream_id] = stream


def _held(receiver: QuicStreamReceiver) -> int:
    """Bytes that arrived, wherever in the stream they belong."""
    ranges = receiver._ranges  # noqa: SLF001
    size: int = receiver._buffer_start  # noqa: SLF001
    return size + sum(len(span) for span in ranges) if len(ranges) else size


def _peek(buf: Buffer) -> int:
    """The stream number that a frame begins with."""
    return peek(buf, 1)[0]


def _too_much_crypto(frame_type: int, reason: str) -> QuicConnectionError:
    return QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, reason)


def _excessive_load(reason: str) -> QuicConnectionError:
    """Closes the connection with HTTP/3's code: no frame type makes it an application's close."""
    return QuicConnectionError(EXCESSIVE_LOAD, NO_FRAME_TYPE, reason)


def _charged(name: str) -> Callable[[Transport, QuicReceiveContext, int, Buffer], None]:
    """The base class's handler behind the control budget."""
    handler = getattr(StrictConnection, name)

    def charge(self: Transport, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._charge()
        handler(self, context, frame_type, buf)

    return charge


CHARGED = (
    "data_blocked",
    "max_streams_bidi",
    "max_streams_uni",
    "new_connection_id",
    "path_challenge",
    "path_response",
    "ping",
    "retire_connection_id",
    "stream_data_blocked",
    "streams_blocked",
)
"""Frames that cost one of the control budget and are otherwise the library's business."""

for _frame in CHARGED:
    setattr(Transport, f"_handle_{_frame}_frame", _charged(f"_handle_{_frame}_frame"))

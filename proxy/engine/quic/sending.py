"""What a connection sends: aioquic's connection with a send loop of our own.

Knows aioquic's private parts. Knows neither HTTP nor where credit and abuse are decided (``connection``). What differs, and why:

- the loop visits the streams that have something to send. The library's visits every open stream for every packet: 25 to 60 us each
  with 120 of them open. Finished streams go with their last acknowledgement, not at the loop's next visit, and nothing of them stays;
- an acknowledgement rides along with data that leaves anyway, instead of in a packet of its own a millisecond later;
- when an acknowledgement is due at the very moment at which pacing holds data back, it is sent. The library then sends nothing and
  leaves its timer in the present: a loop whose clock did not move on would spin;
- receive limits follow ``flow.ReceiveWindows``, stream limits rise only as streams finish;
- NEW_CONNECTION_ID can ask for the retirement of others.
"""

from typing import Any

from aioquic import tls
from aioquic.buffer import size_uint_var
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    NEW_CONNECTION_ID_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionId,
    QuicNetworkPath,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.quic.stream import QuicStream

from proxy.engine.quic.flow import ReceiveWindows, number

PACING_QUANTUM = 0.002
"""Seconds' worth of packets that may leave at once: the timers of an event loop have a grain of a millisecond, and the library's
16 packets for each of them would cap a connection at 19 MB/s."""

PATH_VALIDATION_PTOS = 3
"""RFC 9000, section 8.2.4."""

_STREAM_FRAME = int(QuicFrameType.STREAM_BASE) | 2  # with a length


class Pacer(QuicPacketPacer):
    """aioquic's token bucket, deep enough for the grain of timers."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Set the rate anew."""
        super().update_rate(congestion_window, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, PACING_QUANTUM)


class _Unqueued(list[QuicStream]):
    """Stands where the library queues streams for its own send loop, which is not used."""

    def append(self, stream: QuicStream, /) -> None:
        """Forget it."""


class SendingConnection(QuicConnection):
    """The sending half. Not to be made by itself: ``connection.Transport`` is."""

    _windows: ReceiveWindows
    _cids_from: int
    _now: float

    def _begin_sending(self) -> None:
        self._streams_queue = _Unqueued()
        self._ready: dict[int, QuicStream] = {}
        """Streams with something to send, in the order of service."""
        self._held: dict[int, QuicStream] = {}
        """Streams with something to send that flow control holds back."""
        self._limits_due: dict[int, QuicStream] = {}
        """Streams whose receive limit is to be announced."""
        self.unsent_bytes = 0
        """Bytes of all streams that were queued and not sent once."""
        self._limits_told = 0
        """Receive limits that were announced, each time anew."""
        self.requests_open = 0
        """The client's bidirectional streams that are not finished both ways, acknowledgements included."""

    def _prepare(self, stream: QuicStream) -> None:
        """*stream* has something to send that flow control doesn't hold back (a reset, STOP_SENDING), or is to be tried anew."""
        stream_id = number(stream)
        self._held.pop(stream_id, None)
        self._ready[stream_id] = stream

    def _settle(self, stream: QuicStream) -> None:
        """Let go of a stream that is finished both ways; the client may open another (RFC 9000, section 4.6)."""
        if not stream.is_finished:
            return
        stream_id = number(stream)
        if self._streams.pop(stream_id, None) is None:
            return
        for table in (self._ready, self._held, self._limits_due):
            table.pop(stream_id, None)
        self._windows.forget(stream)
        if not stream_id & 1:
            self._stream_limit(stream_id).value += 1
            if not stream_id & 2:
                self.requests_open -= 1

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        if not crypto.send.is_valid():
            return
        space = self._spaces[tls.Epoch.ONE_RTT]
        tickets = self._crypto_streams[tls.Epoch.ONE_RTT]
        pacer = self._loss._pacer  # noqa: SLF001
        control_due = self._handshake_complete
        while True:
            acknowledge = space.ack_at is not None and space.ack_at <= now
            if not acknowledge:
                self._pacing_at = pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            try:
                if space.ack_at is not None and (acknowledge or self._ready):
                    self._write_ack_frame(builder=builder, space=space, now=now)
                if control_due:
                    self._write_control(builder, network_path, now)
                    control_due = False
                if self._ping_pending:
                    self._write_ping_frame(builder, self._ping_pending)
                    self._ping_pending.clear()
                if self._probe_pending:
                    self._write_ping_frame(builder, comment="probe")
                    self._probe_pending = False
                if not tickets.sender.buffer_is_empty:
                    self._write_crypto_frame(builder=builder, space=space, stream=tickets)
                if self._ready:
                    self._write_streams(builder)
            except QuicPacketBuilderStop:
                pass  # what did not fit goes into the next packet; where nothing fits, into none
            if builder.packet_is_empty:
                return
            pacer.update_after_send(now=now)

    def _write_control(self, builder: QuicPacketBuilder, path: QuicNetworkPath, now: float) -> None:
        if not path.is_validated and not path.local_challenge_sent:
            self._write_path_challenge_frame(builder=builder, network_path=path)
            if path.validation_deadline is None:
                patience = max(self._loss.get_probe_timeout(), 2 * self._configuration.initial_rtt)
                path.validation_deadline = now + PATH_VALIDATION_PTOS * patience
        if self._handshake_done_pending:
            self._write_handshake_done_frame(builder=builder)
            self._handshake_done_pending = False
        while path.remote_challenges:
            self._write_path_response_frame(builder=builder, challenge=path.remote_challenges[0])
            path.remote_challenges.popleft()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                self._write_new_connection_id_frame(builder=builder, connection_id=connection_id)
        while self._retire_connection_ids:
            self._write_retire_connection_id_frame(builder=builder, sequence_number=self._retire_connection_ids[0])
            self._retire_connection_ids.pop(0)
        self._write_windows(builder)
        while self._limits_due:
            stream = next(iter(self._limits_due.values()))
            self._write_stream_limit(builder, stream)
            del self._limits_due[number(stream)]

    def _write_new_connection_id_frame(self, builder: QuicPacketBuilder, connection_id: QuicConnectionId) -> None:
        sequence_number, cid, token = connection_id.sequence_number, connection_id.cid, connection_id.stateless_reset_token
        retire_prior_to = min(self._cids_from, sequence_number)  # one that is lost while it is to be retired is told all the same
        frame = builder.start_frame(
            QuicFrameType.NEW_CONNECTION_ID,
            capacity=NEW_CONNECTION_ID_FRAME_CAPACITY,
            handler=self._on_new_connection_id_delivery,
            handler_args=(connection_id,),
        )
        frame.push_uint_var(sequence_number)
        frame.push_uint_var(retire_prior_to)
        frame.push_uint8(len(cid))
        frame.push_bytes(cid)
        frame.push_bytes(token)
        connection_id.was_sent = True
        if self._quic_logger is not None:
            encoded = self._quic_logger.encode_new_connection_id_frame(
                connection_id=cid, retire_prior_to=retire_prior_to, sequence_number=sequence_number, stateless_reset_token=token
            )
            _trace(builder, encoded)

    def _write_windows(self, builder: QuicPacketBuilder) -> None:
        data = self._local_max_data
        wanted = self._windows.connection_limit(data.value, self._now, self._loss._rtt_smoothed)  # noqa: SLF001
        for limit, value in ((data, wanted), (self._local_max_streams_bidi, 0), (self._local_max_streams_uni, 0)):
            if limit is not data:
                # batched: not while the client may open more streams than the announcement would add
                if limit.sent - limit.used >= limit.value - limit.sent:
                    continue
                value = limit.value  # noqa: PLW2901  # it rose as streams finished
            if value != limit.sent:
                frame = builder.start_frame(
                    limit.frame_type,
                    capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                    handler=self._on_connection_limit_delivery,
                    handler_args=(limit,),
                )
                frame.push_uint_var(value)
                if self._quic_logger is not None:
                    _trace(builder, self._quic_logger.encode_connection_limit_frame(limit.frame_type, value))
                limit.value = limit.sent = value
                self._limits_told += 1

    def _write_stream_limit(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        if stream.receiver.is_finished:
            return
        limit = self._windows.stream_limit(stream, self._now, self._loss._rtt_smoothed)  # noqa: SLF001
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_limit_delivery,
            handler_args=(stream,),
        )
        frame.push_uint_var(number(stream))
        frame.push_uint_var(limit)
        if self._quic_logger is not None:
            _trace(builder, self._quic_logger.encode_max_stream_data_frame(limit, number(stream)))
        stream.max_stream_data_local = limit
        self._limits_told += 1

    def _write_streams(self, builder: QuicPacketBuilder) -> None:
        """Fill the packet from the streams that are ready, each in its turn."""
        ready = self._ready
        for stream_id in list(ready):
            stream = ready[stream_id]
            sender = stream.sender
            if stream.receiver.stop_pending:
                self._write_stop_frame(builder, stream)
            if sender.reset_pending:
                self._write_reset_frame(builder, stream)
            if sender.buffer_is_empty:
                del ready[stream_id]
                continue
            overhead = 3 + size_uint_var(stream_id) + size_uint_var(sender.next_offset)
            space = builder.remaining_flight_space - overhead
            if space <= 0:
                return
            unused = self._remote_max_data - self._remote_max_data_used
            highest = sender.highest_offset
            frame = sender.get_frame(space, min(highest + unused, stream.max_stream_data_remote))
            if frame is None:
                del ready[stream_id]
                if not sender.buffer_is_empty:
                    self._held[stream_id] = stream
                continue
            size = len(frame.data)
            offset = frame.offset
            fin = frame.fin
            buffer = builder.start_frame(
                _STREAM_FRAME | (4 if offset else 0) | (1 if fin else 0),
                capacity=overhead,
                handler=self._on_stream_delivery,
                handler_args=(stream, offset, offset + size, fin),
            )
            buffer.push_uint_var(stream_id)
            if offset:
                buffer.push_uint_var(offset)
            buffer.push_uint16(size | 0x4000)
            buffer.push_bytes(frame.data)
            if self._quic_logger is not None:
                _trace(builder, self._quic_logger.encode_stream_frame(frame, stream_id))
            self._remote_max_data_used += sender.highest_offset - highest
            self.unsent_bytes -= sender.highest_offset - highest
            del ready[stream_id]
            if len(sender._pending) or sender._pending_eof:  # noqa: SLF001
                ready[stream_id] = stream  # again, behind the others
            else:
                sender.buffer_is_empty = True

    def _write_reset_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        frame = builder.start_frame(QuicFrameType.RESET_STREAM, capacity=25, handler=self._on_reset_delivery, handler_args=(stream,))
        reset = stream.sender.get_reset_frame()
        frame.push_uint_var(reset.stream_id)
        frame.push_uint_var(reset.error_code)
        frame.push_uint_var(reset.final_size)
        if self._quic_logger is not None:
            encoded = self._quic_logger.encode_reset_stream_frame(reset.error_code, reset.final_size, reset.stream_id)
            _trace(builder, encoded)

    def _write_stop_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        frame = builder.start_frame(QuicFrameType.STOP_SENDING, capacity=17, handler=self._on_stop_delivery, handler_args=(stream,))
        stop = stream.receiver.get_stop_frame()
        frame.push_uint_var(stop.stream_id)
        frame.push_uint_var(stop.error_code)
        if self._quic_logger is not None:
            _trace(builder, self._quic_logger.encode_stop_sending_frame(stop.error_code, stop.stream_id))

    # What became of it

    def _on_stream_delivery(self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool) -> None:
        stream.sender.on_data_delivery(delivery, start, stop, fin)
        if stream.sender.is_finished:
            self._settle(stream)
        elif not stream.sender.buffer_is_empty and number(stream) in self._streams:
            self._prepare(stream)

    def _on_reset_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        stream.sender.on_reset_delivery(delivery)
        if stream.sender.is_finished:
            self._settle(stream)
        else:
            self._prepare(stream)

    def _on_stop_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        if delivery is not QuicDeliveryState.ACKED and not stream.receiver.is_finished:
            stream.receiver.stop_pending = True
            self._ready[number(stream)] = stream

    def _on_limit_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        if delivery is not QuicDeliveryState.ACKED and number(stream) in self._streams:
            self._limits_due[number(stream)] = stream


def _trace(builder: QuicPacketBuilder, frame: dict[str, Any]) -> None:
    """A frame of the packet that is being written, for the connection's trace."""
    frames = builder.quic_logger_frames
    assert frames is not None
    frames.append(frame)

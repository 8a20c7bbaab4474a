"""Errors of a client that aioquic does not look for, or calls by another name; and keys that are renewed before they are worn.

Knows aioquic's private parts, as ``sending`` does. Knows no budgets and no HTTP. ``tests/e2e/harness/conformance`` has a case for each
error.
"""

from typing import Any, NoReturn

from aioquic import tls
from aioquic._buffer import Buffer, BufferReadError
from aioquic.quic.connection import QuicConnectionError, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from proxy.engine.quic.sending import SendingConnection
from proxy.engine.quic.settings import QuicSettings


class StrictConnection(SendingConnection):
    """The library's connection, less forgiving. Not to be made by itself: ``connection.Transport`` is."""

    key_packets = QuicSettings().key_packets
    """Packets that are sent with the same keys."""

    _sealed_since = 0
    """The first packet of ours with the present keys."""

    _keys_since = 0
    """The first of our packets whose acknowledgement lets the client update its keys again (RFC 9001, section 6.1)."""

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """As the base class; with fresh keys where the present ones were used for long, and are known to work."""
        since = self._sealed_since
        if self._packet_number - since >= self.key_packets and self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet >= since:
            self.request_key_update()
        return super().datagrams_to_send(now)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:  # noqa: FBT002  # the library's
        if _comes_twice(data):
            _fail(QuicErrorCode.TRANSPORT_PARAMETER_ERROR, QuicFrameType.CRYPTO, "a transport parameter twice")
        super()._parse_transport_parameters(data, from_session_ticket)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """RFC 9000, section 13.1: who acknowledges what was never sent would have more sent than the path takes."""
        if peek(buf, 1)[0] >= self._packet_number:
            _fail(QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "a packet is acknowledged that was never sent")
        super()._handle_ack_frame(context, frame_type, buf)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """RFC 9001, section 6: KeyUpdate is none of QUIC's messages, and a client has no other one behind the handshake."""
        if context.epoch is tls.Epoch.ONE_RTT and peek(buf, 2)[1]:
            code = QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.unexpected_message
            _fail(code, frame_type, "a TLS message behind the handshake")
        super()._handle_crypto_frame(context, frame_type, buf)

    def _handle_new_connection_id_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        sequence, retire_prior_to = peek(buf, 2)
        if retire_prior_to > sequence:
            _fail(QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "a connection ID that retires itself")
        super()._handle_new_connection_id_frame(context, frame_type, buf)

    def _log_key_updated(self, key_type: str, trigger: str) -> None:
        """The library calls it for each direction when keys change; nothing may be raised here."""
        super()._log_key_updated(key_type, trigger)
        if key_type == "server_1rtt_secret":
            self._sealed_since = self._packet_number
        if trigger != "remote_update" or key_type != "client_1rtt_secret":
            return
        if self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet < self._keys_since:
            self.close(QuicErrorCode.KEY_UPDATE_ERROR, QuicFrameType.PADDING, "keys were updated twice without a word between")
        self._keys_since = self._packet_number


def peek(buf: Buffer, count: int) -> list[int]:
    """The numbers that a frame begins with. Raises BufferReadError where it has fewer."""
    start = buf.tell()
    numbers = [buf.pull_uint_var() for _ in range(count)]
    buf.seek(start)
    return numbers


def _comes_twice(parameters: bytes) -> bool:
    """A transport parameter is there twice (RFC 9000, section 7.4). What is malformed otherwise is for the library to say."""
    buf = Buffer(data=parameters)
    seen: set[int] = set()
    try:
        while not buf.eof():
            kind = buf.pull_uint_var()
            if kind in seen:
                return True
            seen.add(kind)
            buf.pull_bytes(buf.pull_uint_var())
    except BufferReadError:
        pass
    return False


def _fail(code: int, frame_type: int, reason: str) -> NoReturn:
    raise QuicConnectionError(code, frame_type, reason)

"""What breaks QUIC's rules once the connection is established (RFC 9000, section 20.1): packets of frames, and the error of each."""

from aioquic import tls
from aioquic.quic.crypto import apply_key_phase, next_key_phase

from harness.conformance.case import Alert, Case, Otherwise, Quic
from harness.raw3 import Raw3, varint

OURS, THEIRS, REQUEST = 3, 2, 0
"""Unidirectional streams of the server and the client, and the client's first request."""

PADDING, PING, ACK, ACK_ECN, RESET_STREAM, STOP_SENDING, CRYPTO, NEW_TOKEN = range(8)
STREAM, MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS, MAX_STREAMS_UNI = 0x08, 0x10, 0x11, 0x12, 0x13
DATA_BLOCKED, STREAM_DATA_BLOCKED, STREAMS_BLOCKED, STREAMS_BLOCKED_UNI = 0x14, 0x15, 0x16, 0x17
NEW_CONNECTION_ID, RETIRE_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE, HANDSHAKE_DONE, DATAGRAM = 0x18, 0x19, 0x1A, 0x1B, 0x1E, 0x30
FIN, LENGTH, OFFSET = 1, 2, 4
MOST = (1 << 62) - 1
CANCELLED = 0x10C


def v(*numbers: int) -> bytes:
    return b"".join(varint(number) for number in numbers)


def stream(number: int, offset: int, data: bytes = b"", *, fin: bool = False) -> bytes:
    """A STREAM frame."""
    return v(STREAM | OFFSET | LENGTH | fin, number, offset, len(data)) + data


def connection_id(sequence: int, *, retire: int = 0, cid: bytes | None = None, token: int = 0) -> bytes:
    """A NEW_CONNECTION_ID frame."""
    cid = sequence.to_bytes(8, "big") if cid is None else cid
    return v(NEW_CONNECTION_ID, sequence, retire) + bytes((len(cid),)) + cid + token.to_bytes(16, "big")


def says(*packets: bytes):
    """Send packets of these frames."""

    def act(client: Raw3) -> None:
        for payload in packets:
            client.packet(payload)

    return act


def retire_own(client: Raw3) -> None:
    """Retire the ID that the packet is for."""
    client.packet(v(RETIRE_CONNECTION_ID, client.quic._peer_cid.sequence_number))


async def update_keys_twice(client: Raw3) -> None:
    """The second update comes before an acknowledgement of a packet with the keys of the first."""
    await client.ping()  # so that the handshake is confirmed
    keys = client.quic._cryptos[tls.Epoch.ONE_RTT]
    with client.together():  # else the server may have acknowledged the first, which is enough for quiche
        for _ in range(2):
            apply_key_phase(keys.send, next_key_phase(keys.send), trigger="local_update")
            client.packet(v(PING))
    apply_key_phase(keys.recv, next_key_phase(keys.recv), trigger="local_update")  # from the first update's on it reads the answer


def another_id(client: Raw3) -> None:
    """Another ID for a sequence number that the client has used."""
    client.packet(connection_id(1, cid=b"another!"))


def acknowledges(*fields: int):
    """ACK, once packets of the application's have come from the server."""

    async def act(client: Raw3) -> None:
        await client.ping()
        client.packet(v(ACK, *fields))

    return act


TRANSPORT = (
    Case("an unknown frame type", "RFC 9000, 12.4", says(v(0x3F)), Quic.FRAME_ENCODING_ERROR),
    Case("a frame type of eight octets that is unknown", "RFC 9000, 12.4", says(v(1 << 40)), Quic.FRAME_ENCODING_ERROR),
    Case("a frame that is cut off", "RFC 9000, 12.4", says(b"\x06\x00\x40"), Quic.FRAME_ENCODING_ERROR),
    Case("STREAM longer than its packet", "RFC 9000, 12.4", says(v(STREAM | LENGTH, REQUEST, 100) + b"x"), Quic.FRAME_ENCODING_ERROR),
    Case("a packet without frames", "RFC 9000, 12.4", says(b""), Quic.PROTOCOL_VIOLATION),
    Case("reserved bits", "RFC 9000, 17.3.1", lambda client: client.packet(v(PING), first=0x18), Quic.PROTOCOL_VIOLATION),
    # Frames that only servers send
    Case("HANDSHAKE_DONE", "RFC 9000, 19.20", says(v(HANDSHAKE_DONE)), Quic.PROTOCOL_VIOLATION),
    Case("NEW_TOKEN", "RFC 9000, 19.7", says(v(NEW_TOKEN, 1) + b"a"), Quic.PROTOCOL_VIOLATION),
    Case("DATAGRAM, which was not offered", "RFC 9221, 3", says(v(DATAGRAM) + b"x"), Quic.PROTOCOL_VIOLATION),
    # Streams
    Case("STREAM on a stream of the server's", "RFC 9000, 19.8", says(stream(OURS, 0, b"x")), Quic.STREAM_STATE_ERROR),
    Case("STREAM on a stream that the server has not opened", "RFC 9000, 19.8", says(stream(1, 0, b"x")), Quic.STREAM_STATE_ERROR),
    Case("RESET_STREAM on a stream of the server's", "RFC 9000, 19.4", says(v(RESET_STREAM, OURS, 0, 0)), Quic.STREAM_STATE_ERROR),
    Case("STOP_SENDING on a stream of the client's", "RFC 9000, 19.5", says(v(STOP_SENDING, THEIRS, 0)), Quic.STREAM_STATE_ERROR),
    Case("STOP_SENDING on a stream that is not open", "RFC 9000, 19.5", says(v(STOP_SENDING, 7, 0)), Quic.STREAM_STATE_ERROR),
    Case("MAX_STREAM_DATA on a stream of the client's", "RFC 9000, 19.10", says(v(MAX_STREAM_DATA, THEIRS, 9)), Quic.STREAM_STATE_ERROR),
    Case("MAX_STREAM_DATA on a stream that is not open", "RFC 9000, 19.10", says(v(MAX_STREAM_DATA, 7, 9)), Quic.STREAM_STATE_ERROR),
    Case(
        "STREAM_DATA_BLOCKED on a stream of the server's", "RFC 9000, 19.13", says(v(STREAM_DATA_BLOCKED, OURS, 9)), Quic.STREAM_STATE_ERROR
    ),
    Case("STREAM beyond the limit of streams", "RFC 9000, 4.6", says(stream(4 * 5000, 0, b"x")), Quic.STREAM_LIMIT_ERROR),
    Case("STREAM beyond the limit of unidirectional streams", "RFC 9000, 4.6", says(stream(2 + 4 * 8, 0, b"x")), Quic.STREAM_LIMIT_ERROR),
    Case("RESET_STREAM beyond the limit of streams", "RFC 9000, 4.6", says(v(RESET_STREAM, 4 * 5000, 0, 0)), Quic.STREAM_LIMIT_ERROR),
    Case("STOP_SENDING beyond the limit of streams", "RFC 9000, 4.6", says(v(STOP_SENDING, 4 * 5000, 0)), Quic.STREAM_LIMIT_ERROR),
    Case("MAX_STREAMS beyond 2^60", "RFC 9000, 19.11", says(v(MAX_STREAMS, (1 << 60) + 1)), Quic.FRAME_ENCODING_ERROR),
    Case("MAX_STREAMS (unidirectional) beyond 2^60", "RFC 9000, 19.11", says(v(MAX_STREAMS_UNI, MOST)), Quic.FRAME_ENCODING_ERROR),
    Case("STREAMS_BLOCKED beyond 2^60", "RFC 9000, 19.14", says(v(STREAMS_BLOCKED, (1 << 60) + 1)), Quic.FRAME_ENCODING_ERROR),
    # Flow control
    Case("STREAM beyond the stream's window", "RFC 9000, 4.1", says(stream(REQUEST, 1 << 40, b"x")), Quic.FLOW_CONTROL_ERROR),
    Case("STREAM of no bytes beyond the window", "RFC 9000, 19.8", says(stream(REQUEST, 1 << 40)), Quic.FLOW_CONTROL_ERROR),
    Case(
        "STREAM beyond the connection's window",
        "RFC 9000, 4.1",
        says(*(stream(4 * number, 150_000, b"x") for number in range(8))),
        Quic.FLOW_CONTROL_ERROR,
    ),
    Case("RESET_STREAM beyond the window", "RFC 9000, 4.5", says(v(RESET_STREAM, REQUEST, 0, 1 << 40)), Quic.FLOW_CONTROL_ERROR),
    Case("STREAM beyond 2^62", "RFC 9000, 19.8", says(stream(REQUEST, MOST, b"x")), Quic.FRAME_ENCODING_ERROR),
    # Final sizes
    Case(
        "STREAM behind the end of its stream",
        "RFC 9000, 4.5",
        says(stream(REQUEST, 10, fin=True), stream(REQUEST, 10, b"x")),
        Quic.FINAL_SIZE_ERROR,
    ),
    Case("an end that moves", "RFC 9000, 4.5", says(stream(REQUEST, 10, fin=True), stream(REQUEST, 9, fin=True)), Quic.FINAL_SIZE_ERROR),
    Case(
        "an end before what has come", "RFC 9000, 4.5", says(stream(REQUEST, 20, b"x"), stream(REQUEST, 9, fin=True)), Quic.FINAL_SIZE_ERROR
    ),
    Case(
        "RESET_STREAM with another end",
        "RFC 9000, 4.5",
        says(stream(REQUEST, 10, fin=True), v(RESET_STREAM, REQUEST, CANCELLED, 9)),
        Quic.FINAL_SIZE_ERROR,
    ),
    Case(
        "RESET_STREAM that ends before what has come",
        "RFC 9000, 4.5",
        says(stream(REQUEST, 20, b"x"), v(RESET_STREAM, REQUEST, CANCELLED, 9)),
        Quic.FINAL_SIZE_ERROR,
    ),
    # Connection IDs
    Case("NEW_CONNECTION_ID of 21 bytes", "RFC 9000, 19.15", says(connection_id(9, cid=bytes(21))), Quic.FRAME_ENCODING_ERROR),
    Case("NEW_CONNECTION_ID of no bytes", "RFC 9000, 19.15", says(connection_id(9, cid=b"")), Quic.FRAME_ENCODING_ERROR),
    Case("NEW_CONNECTION_ID that retires itself", "RFC 9000, 19.15", says(connection_id(9, retire=10)), Quic.FRAME_ENCODING_ERROR),
    Case(
        "another ID with the same number",
        "RFC 9000, 19.15",
        another_id,
        Quic.PROTOCOL_VIOLATION,
        except_for={"aioquic": Otherwise(None, "It keeps the first; the section says that an endpoint may call it an error.")},
    ),
    Case(
        "more IDs than the limit",
        "RFC 9000, 5.1.1",
        says(*(connection_id(sequence) for sequence in range(8, 20))),
        Quic.CONNECTION_ID_LIMIT_ERROR,
    ),
    Case(
        "RETIRE_CONNECTION_ID of one that was never issued", "RFC 9000, 19.16", says(v(RETIRE_CONNECTION_ID, 1000)), Quic.PROTOCOL_VIOLATION
    ),
    Case("RETIRE_CONNECTION_ID of the packet's own", "RFC 9000, 19.16", retire_own, Quic.PROTOCOL_VIOLATION),
    # Acknowledgements
    Case("ACK of a packet that was never sent", "RFC 9000, 13.1", acknowledges(100_000, 0, 0, 0), Quic.PROTOCOL_VIOLATION),
    Case("ACK of all packets that there can be", "RFC 9000, 13.1", acknowledges(MOST, 0, 0, MOST), Quic.PROTOCOL_VIOLATION),
    Case("ACK of a negative packet number", "RFC 9000, 19.3.1", acknowledges(0, 0, 0, 1), Quic.FRAME_ENCODING_ERROR),
    Case("ACK with a range below 0", "RFC 9000, 19.3.1", acknowledges(0, 0, 1, 0, 2, 0), Quic.FRAME_ENCODING_ERROR),
    Case("ACK with fewer ranges than it says", "RFC 9000, 19.3", acknowledges(0, 0, 1 << 30, 0), Quic.FRAME_ENCODING_ERROR),
    # Handshake data behind the handshake, and keys
    Case("KeyUpdate of TLS", "RFC 9001, 6", says(v(CRYPTO, 0, 5) + b"\x18\0\0\1\0"), Alert.UNEXPECTED_MESSAGE),
    Case("a message of TLS behind the handshake", "RFC 9001, 4.4", says(v(CRYPTO, 0, 4) + b"\x04\0\0\0"), Alert.UNEXPECTED_MESSAGE),
    Case("CRYPTO far ahead", "RFC 9000, 7.5", says(v(CRYPTO, 1 << 30, 1) + b"x"), Quic.CRYPTO_BUFFER_EXCEEDED),
    Case("CRYPTO beyond 2^62", "RFC 9000, 19.6", says(v(CRYPTO, MOST, 1) + b"x"), Quic.CRYPTO_BUFFER_EXCEEDED),
    Case("keys that are updated twice without a word between", "RFC 9001, 6.1", update_keys_twice, Quic.KEY_UPDATE_ERROR),
)

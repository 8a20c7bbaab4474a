"""What ends a handshake: transport parameters (RFC 9000, section 18), ClientHellos (RFC 9001, section 8), and their packets."""

from collections.abc import Callable, Sequence
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer

from harness.conformance.case import Alert, Case, Otherwise, Quic
from harness.conformance.transport import ACK, CRYPTO, HANDSHAKE_DONE, MAX_DATA, PING, stream, v
from harness.raw3 import Raw3, varint

TLS_1_2 = 0x0303
SUITES = b"\x13\x02\x13\x01\x13\x03"


def parameters(change: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    """The client's transport parameters, changed."""

    def hello(quic: Any) -> None:
        serialize = quic._serialize_transport_parameters
        quic._serialize_transport_parameters = lambda: change(serialize())

    return hello


def with_parameter(kind: int, value: bytes) -> Callable[[Any], None]:
    """One parameter in place of the client's own, if it has one."""

    def change(data: bytes) -> bytes:
        return without(data, kind) + varint(kind) + varint(len(value)) + value

    return parameters(change)


def without(data: bytes, kind: int) -> bytes:
    """Parameters but those of a kind."""
    buffer, kept = Buffer(data=data), b""
    while not buffer.eof():
        found, value = buffer.pull_uint_var(), buffer.pull_bytes(buffer.pull_uint_var())
        if found != kind:
            kept += varint(found) + varint(len(value)) + value
    return kept


def hello(**changed: Any) -> Callable[[Any], None]:
    """Change attributes of the client's TLS before it says hello."""

    def change(quic: Any) -> None:
        begin = quic._initialize

        def initialize(peer_cid: bytes) -> None:
            begin(peer_cid)
            for name, value in changed.items():
                setattr(quic.tls, name, value)

        quic._initialize = initialize

    return change


def rewritten(name: str, source: str, code: Alert | Quic, old: bytes, new: bytes) -> Case:
    """A ClientHello with other bytes, as many."""

    def change(quic: Any) -> None:
        push = quic._push_crypto_data

        def pushing() -> None:
            for buffer in quic._crypto_buffers.values():
                data = buffer.data
                buffer.seek(0)
                buffer.push_bytes(data.replace(old, new, 1))
            push()

        quic._push_crypto_data = pushing

    return Case(name, source, nothing, code, hello=change)


def nothing(_: object) -> None:
    """What is to be said is said elsewhere."""


def first(payload: bytes, *, bits: int = 0) -> Callable[[Raw3], None]:
    """The first packet of the connection, or one that follows it at once."""
    return lambda client: client.initial(payload, first=bits)


def crypto(data: bytes, offset: int = 0) -> bytes:
    return v(CRYPTO, offset, len(data)) + data


def parameter(name: str, kind: int, value: bytes, section: str = "18.2") -> Case:
    return Case(name, f"RFC 9000, {section}", nothing, Quic.TRANSPORT_PARAMETER_ERROR, hello=with_parameter(kind, value))


def refused(name: str, source: str, code: Alert | Quic, **changed: Any) -> Case:
    return Case(name, source, nothing, code, hello=hello(**changed))


def starts(name: str, source: str, payload: bytes, code: Alert | Quic) -> Case:
    return Case(name, source, first(payload), code, silent=True)


HANDSHAKE: Sequence[Case] = (
    # Transport parameters
    parameter("original_destination_connection_id from a client", 0x0, bytes(8)),
    parameter("stateless_reset_token from a client", 0x2, bytes(16)),
    parameter("preferred_address from a client", 0xD, bytes(4 + 2 + 16 + 2) + b"\x08" + bytes(8 + 16)),
    parameter("retry_source_connection_id from a client", 0x10, bytes(8)),
    parameter("max_udp_payload_size below 1200", 0x3, v(1199)),
    parameter("initial_max_streams_bidi beyond 2^60", 0x8, v((1 << 60) + 1), "4.6"),
    parameter("initial_max_streams_uni beyond 2^60", 0x9, v((1 << 60) + 1), "4.6"),
    parameter("ack_delay_exponent above 20", 0xA, v(21)),
    parameter("max_ack_delay of 2^14", 0xB, v(1 << 14)),
    parameter("active_connection_id_limit below 2", 0xE, v(1)),
    parameter("initial_source_connection_id of somebody else", 0xF, b"somebody", "7.3"),
    Case(
        "a number with bytes behind it",
        "RFC 9000, 18",
        nothing,
        Quic.TRANSPORT_PARAMETER_ERROR,
        hello=with_parameter(0x4, v(1 << 20) + b"\0"),
        except_for={"native": Otherwise(None, "quiche reads the number and no further, which nobody else can notice.")},
    ),
    Case(
        "no initial_source_connection_id",
        "RFC 9000, 7.3",
        nothing,
        Quic.TRANSPORT_PARAMETER_ERROR,
        hello=parameters(lambda data: without(data, 0xF)),
    ),
    Case(
        "a parameter twice",
        "RFC 9000, 7.4",
        nothing,
        Quic.TRANSPORT_PARAMETER_ERROR,
        hello=parameters(lambda data: data + v(0x4, 1, 9) + v(0x4, 1, 9)),
    ),
    Case(
        "parameters that are cut off",
        "RFC 9000, 7.4",
        nothing,
        Quic.TRANSPORT_PARAMETER_ERROR,
        hello=parameters(lambda data: data[:-1]),
        except_for={"native": Otherwise(Quic.PROTOCOL_VIOLATION, "RFC 9000, section 11, allows a generic code for a specific one.")},
    ),
    refused("no transport parameters", "RFC 9001, 8.2", Alert.MISSING_EXTENSION, handshake_extensions=[]),
    # TLS
    refused("ALPN without h3", "RFC 9001, 8.1", Alert.NO_APPLICATION_PROTOCOL, _alpn_protocols=["hq-29"]),
    refused("no ALPN", "RFC 9001, 8.1", Alert.NO_APPLICATION_PROTOCOL, _alpn_protocols=None),
    refused("TLS 1.2", "RFC 9001, 4.2", Alert.PROTOCOL_VERSION, _supported_versions=[TLS_1_2]),
    rewritten("cipher suites that nobody knows", "RFC 8446, 4.1.1", Alert.HANDSHAKE_FAILURE, SUITES, b"\x5a\x5a" * 3),
    refused("groups that nobody knows", "RFC 8446, 4.1.1", Alert.HANDSHAKE_FAILURE, _supported_groups=[tls.Group.GREASE]),
    Case(
        "a session ID of middlebox compatibility",
        "RFC 9001, 8.4",
        nothing,
        Quic.PROTOCOL_VIOLATION,
        hello=hello(legacy_session_id=bytes(32)),
        except_for={"native": Otherwise(Alert.ILLEGAL_PARAMETER, "BoringSSL finds it before quiche does; the section says SHOULD.")},
    ),
    starts("a ClientHello that is cut off by its own length", "RFC 8446, 6.2", crypto(b"\1\0\0\4\3\3\0\0"), Alert.DECODE_ERROR),
    starts("a message that is no ClientHello", "RFC 8446, 4", crypto(b"\2\0\0\4\3\3\0\0"), Alert.UNEXPECTED_MESSAGE),
    # Packets
    Case(
        "a first packet without CRYPTO",
        "RFC 9000, 17.2.2",
        first(v(PING)),
        Quic.PROTOCOL_VIOLATION,
        silent=True,
        except_for={"native": Otherwise(None, "quiche waits for the ClientHello; what waits is bounded as every handshake is.")},
    ),
    starts("STREAM in an Initial", "RFC 9000, 17.2.2", crypto(b"\1") + stream(0, 0, b"x"), Quic.PROTOCOL_VIOLATION),
    starts("MAX_DATA in an Initial", "RFC 9000, 12.5", crypto(b"\1") + v(MAX_DATA, 9), Quic.PROTOCOL_VIOLATION),
    starts("HANDSHAKE_DONE in an Initial", "RFC 9000, 12.5", crypto(b"\1") + v(HANDSHAKE_DONE), Quic.PROTOCOL_VIOLATION),
    starts("an unknown frame in an Initial", "RFC 9000, 12.4", crypto(b"\1") + v(0x3F), Quic.FRAME_ENCODING_ERROR),
    starts(
        "a frame that is cut off in an Initial",
        "RFC 9000, 12.4",
        crypto(b"\1") + bytes(1000) + v(CRYPTO, 0, 4000),
        Quic.FRAME_ENCODING_ERROR,
    ),
    Case("reserved bits in an Initial", "RFC 9000, 17.2", first(v(PING), bits=0x0C), Quic.PROTOCOL_VIOLATION, hello=nothing),
    starts("ACK of an Initial that was never sent", "RFC 9000, 13.1", crypto(b"\1") + v(ACK, 99, 0, 0, 0), Quic.PROTOCOL_VIOLATION),
    starts("a ClientHello far ahead", "RFC 9000, 7.5", crypto(b"\1", 1 << 20), Quic.CRYPTO_BUFFER_EXCEEDED),
)

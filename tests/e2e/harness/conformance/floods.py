"""What each client may do a little of, without end: each flood ends its connection, and takes no more than a budget until then."""

from collections.abc import Callable, Sequence

from aioquic.quic.connection import QuicConnectionId

from harness import raw3 as r
from harness.conformance import transport as t
from harness.conformance.case import H3, Case, Otherwise, Quic
from harness.conformance.handshake import crypto
from harness.conformance.http3 import GREASE, PRIORITY_UPDATE, SETTINGS, UPLOAD, request
from harness.conformance.qpack import DECODER
from harness.conformance.transport import CANCELLED, REQUEST, connection_id, stream, v
from harness.raw3 import Raw3, frame, head

ENOUGH = 4000
"""Frames of a flood: several times what a budget holds in a burst and gives back meanwhile."""

ROUNDS = 100
PACKET = 1100


def flood(payload: bytes) -> Callable[[Raw3], None]:
    """A frame of QUIC again and again, as many as fit in each packet."""

    def act(client: Raw3) -> None:
        each = PACKET // len(payload)
        for _ in range(0, ENOUGH, each):
            client.packet(payload * each)

    return act


def rising(make: Callable[[int], bytes]) -> Callable[[Raw3], None]:
    """Frames of QUIC that are each a little different."""

    def act(client: Raw3) -> None:
        payload = b""
        for number in range(ENOUGH):
            more = make(number)
            if len(payload) + len(more) > PACKET:
                client.packet(payload)
                payload = b""
            payload += more
        client.packet(payload)

    return act


def opened(payload: bytes) -> Callable[[Raw3], None]:
    """As ``flood``, about a request that the client's library knows as well."""

    def act(client: Raw3) -> None:
        client.stream(b"\1")
        flood(payload)(client)

    return act


def retirements(client: Raw3) -> None:
    """IDs that retire all before them, more in one packet than anybody keeps in mind."""
    own = client.quic._host_cids
    payload = b""
    for sequence in range(8, 60):
        cid = sequence.to_bytes(8, "big")
        own.append(QuicConnectionId(cid=cid, sequence_number=sequence, was_sent=True))
        payload += connection_id(sequence, retire=sequence, cid=cid)
        if len(payload) > PACKET:
            break
    client.quic._host_cid_seq = sequence + 1
    client.packet(payload)


def same_id(client: Raw3) -> None:
    """One of the client's IDs, again and again."""
    own = client.quic._host_cids[1]
    flood(connection_id(own.sequence_number, cid=own.cid, token=int.from_bytes(own.stateless_reset_token, "big")))(client)


async def same_acknowledgement(client: Raw3) -> None:
    """Once there is something to acknowledge."""
    await client.ping()
    flood(v(t.ACK, 0, 0, 0, 0))(client)


async def same_retirement(client: Raw3) -> None:
    """The server's second ID is retired again and again, once it has been issued."""
    await client.ping()
    assert client.quic._peer_cid_available
    retired = client.quic._peer_cid_available.pop(0)  # the server issues another in its place
    flood(v(t.RETIRE_CONNECTION_ID, retired.sequence_number))(client)


def resets(client: Raw3) -> None:
    numbers = [client.stream(b"\1") for _ in range(90)]  # the client's library has to know them, since ours are reset in return
    payload = b"".join(v(t.RESET_STREAM, number, CANCELLED, 1) for number in numbers)
    for _ in range(20):
        client.packet(payload)


def rapid_reset(client: Raw3) -> None:
    """Requests that are opened and cancelled (CVE-2023-44487)."""
    for _ in range(50):
        number = client.stream(UPLOAD)
        client.quic.reset_stream(number, CANCELLED)
        client.quic.stop_stream(number, CANCELLED)
    client.transmit()


def refused_requests(client: Raw3) -> None:
    """Requests that the server resets by itself (as in CVE-2025-8671)."""
    for _ in range(50):
        client.stream(head(request(b"/never", (b"X", b"1"))), end=True)


def gaps_in_hello(client: Raw3) -> None:
    for packet in range(10):
        client.initial(b"".join(crypto(b"\1", 1 + 2 * number) for number in range(packet * 150, packet * 150 + 150)))


def pings_before_hello(client: Raw3) -> None:
    client.initial(crypto(b"\1") + b"\1" * PACKET)
    client.initial(b"\1" * PACKET)


def control(payload: bytes) -> Callable[[Raw3], None]:
    """Frames of HTTP/3 on the control stream."""
    return lambda client: client.control(SETTINGS + payload * ENOUGH)


def of_quic(name: str, act: Callable[[Raw3], object], source: str = "RFC 9000, 21") -> Case:
    return Case(name, source, act, H3.H3_EXCESSIVE_LOAD)


def of_http(name: str, act: Callable[[Raw3], object], source: str = "RFC 9114, 10.5", rounds: int = 1) -> Case:
    return Case(name, source, act, H3.H3_EXCESSIVE_LOAD, control=False, rounds=rounds)


FLOODS: Sequence[Case] = (
    of_quic("PING", flood(v(t.PING))),
    of_quic("ACK of the same packet", same_acknowledgement),
    of_quic("PATH_CHALLENGE", flood(v(t.PATH_CHALLENGE) + bytes(8))),
    of_quic("PATH_RESPONSE to nothing", flood(v(t.PATH_RESPONSE) + bytes(8))),
    of_quic("MAX_DATA", flood(v(t.MAX_DATA, 5))),
    of_quic("MAX_STREAM_DATA", opened(v(t.MAX_STREAM_DATA, REQUEST, 5))),
    of_quic("MAX_STREAMS", flood(v(t.MAX_STREAMS, 5))),
    of_quic("MAX_STREAMS, more each time", rising(lambda number: v(t.MAX_STREAMS_UNI, 1000 + number))),
    of_quic("DATA_BLOCKED", flood(v(t.DATA_BLOCKED, 5))),
    of_quic("STREAM_DATA_BLOCKED", opened(v(t.STREAM_DATA_BLOCKED, REQUEST, 5))),
    of_quic("STREAMS_BLOCKED", flood(v(t.STREAMS_BLOCKED, 5))),
    of_quic("STREAMS_BLOCKED (unidirectional)", flood(v(t.STREAMS_BLOCKED_UNI, 5))),
    of_quic("NEW_CONNECTION_ID with the same ID", same_id),
    Case(
        "NEW_CONNECTION_ID that retires all before it",
        "RFC 9000, 5.1.2",
        retirements,
        Quic.CONNECTION_ID_LIMIT_ERROR,
    ),
    of_quic("RETIRE_CONNECTION_ID of the same ID", same_retirement),
    of_quic("empty CRYPTO", flood(v(t.CRYPTO, 0, 0))),
    of_quic("empty STREAM", opened(stream(REQUEST, 1))),
    of_quic("the same STREAM", flood(stream(REQUEST, 0, b"\1"))),
    of_quic("the end of a stream", opened(stream(REQUEST, 9, fin=True))),
    of_quic("STREAM of one byte each", rising(lambda number: stream(REQUEST, number, b"\x21"))),
    of_quic("STREAM of one byte at every other place", rising(lambda number: stream(REQUEST, 1 + 2 * number, b"\x21"))),
    of_quic("STREAM of one byte, the last first", rising(lambda number: stream(REQUEST, 2 * (ENOUGH - number), b"\x21"))),
    of_quic("RESET_STREAM", resets),
    of_quic("STOP_SENDING", opened(v(t.STOP_SENDING, REQUEST, CANCELLED))),
    Case(
        "CRYPTO of one byte at every other place, before the handshake",
        "RFC 9000, 7.5",
        gaps_in_hello,
        Quic.APPLICATION_ERROR,
        silent=True,
        except_for={"aioquic": Otherwise(Quic.CRYPTO_BUFFER_EXCEEDED, "64 holes are as many as it keeps.")},
    ),
    Case("PING before the handshake", "RFC 9000, 21", pings_before_hello, Quic.APPLICATION_ERROR, silent=True),
    of_http("rapid reset", rapid_reset, "RFC 9114, 10.5", ROUNDS),
    of_http("malformed requests", refused_requests, "RFC 9114, 10.5", ROUNDS),
    of_http("unknown frames on the control stream", control(frame(GREASE))),
    of_http("unknown frames on a request stream", lambda client: client.stream(UPLOAD + frame(GREASE) * ENOUGH)),
    of_http("PRIORITY_UPDATE", control(frame(PRIORITY_UPDATE, v(REQUEST) + b"u=1")), "RFC 9218, 10"),
    of_http("MAX_PUSH_ID", control(frame(r.MAX_PUSH_ID, v(5)))),
    of_http("GOAWAY", control(frame(r.GOAWAY, v(5)))),
    of_http("empty DATA", lambda client: client.stream(UPLOAD + frame(r.DATA) * ENOUGH)),
    of_http("cancellations of QPACK's", lambda client: client.unidirectional(DECODER + b"\x40" * ENOUGH), "RFC 9204, 7"),
)

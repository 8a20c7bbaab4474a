"""Hostile QUIC and HTTP/3: packets that are nobody's, and malformed messages. ``test_e2e_conformance`` has the codes and floods."""

import random

import pytest
from harness import raw3 as r
from harness.guard import Guard, rejected, sample
from harness.raw3 import frame, head, initial, raw3, said_to, varint

pytestmark = pytest.mark.speaks("HTTP/3")
VERSION = "HTTP/3"
HELLO = b"Hello from a.example.com (HTTP/3)!\n"
MESSAGE_ERROR, CANCELLED, INCOMPLETE = 0x10E, 0x10C, 0x10D


def request(path: bytes = b"/hello", *more: tuple[bytes, bytes], method: bytes = b"GET", authority: bytes = b"a.example.com"):
    return [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path), *more]


NEVER = request(b"/never")


@pytest.fixture(scope="module")
def watch(authority, proxy, backends):
    return Guard(authority, proxy, backends)


@pytest.fixture
async def guard(authority, proxy, watch):
    """As elsewhere; and a new QUIC connection is served after each case, too."""
    yield watch
    async with raw3(authority, proxy.port) as client:
        await served(client)


def ended(error: str) -> str:
    return sample("qproxy_connection_errors_total", version=VERSION, error=error)


async def served(client: r.Raw3) -> None:
    answer = await client.answer(client.stream(head(request()), end=True))
    assert (answer.status, answer.body) == (200, HELLO)


# Datagrams outside any connection

NOISE = random.Random(3)
SILENCE = {
    "one byte": lambda first: [bytes((byte,)) for byte in range(256)],
    "nothing": lambda first: [b""],
    "noise": lambda first: [bytes((NOISE.randrange(64),)) + NOISE.randbytes(size) for size in range(0, 1500, 13)],
    "noise that looks like a long header": lambda first: [b"\xc0\0\0\0\x01" + NOISE.randbytes(1195) for _ in range(50)],
    "an Initial of 1199 bytes": lambda first: [first[:1199]],
    "an Initial that is cut off": lambda first: [first[:size] for size in range(0, 1200, 37)],
    "an Initial with a bit wrong in its payload": lambda first: [first[:60] + bytes((first[60] ^ 1,)) + first[61:]],
    "an Initial with a bit wrong in its length": lambda first: [first[:24] + bytes((first[24] ^ 0x20,)) + first[25:]],
    "a destination ID of 7 bytes": lambda first: [b"\xc0\0\0\0\x01\x07" + NOISE.randbytes(1300)],
    "a destination ID of 21 bytes": lambda first: [b"\xc0\0\0\0\x01\x15" + NOISE.randbytes(1300)],
    "a source ID of 21 bytes": lambda first: [b"\xc0\0\0\0\x01\x08" + bytes(8) + b"\x15" + NOISE.randbytes(1300)],
    "version negotiation from a client": lambda first: [b"\xc0\0\0\0\0\x08" + bytes(8) + b"\x08" + bytes(8) + b"\0\0\0\x01" * 300],
    "a Retry from a client": lambda first: [b"\xf0\0\0\0\x01\x08" + bytes(8) + b"\x08" + bytes(8) + NOISE.randbytes(1200)],
    "0-RTT without its Initial": lambda first: [b"\xd0\0\0\0\x01\x08" + bytes(8) + b"\x08" + bytes(8) + NOISE.randbytes(1200)],
    "a Handshake packet without its Initial": lambda first: [b"\xe0\0\0\0\x01\x08" + bytes(8) + b"\x08" + bytes(8) + NOISE.randbytes(1200)],
    "DNS": lambda first: [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01"],
}


@pytest.mark.parametrize("name", SILENCE)
async def test_datagrams_that_begin_no_connection_get_no_answer(authority, proxy, guard, name):
    """Whoever forges an address gets nothing sent there."""
    with guard.case():
        assert said_to(proxy.port, SILENCE[name](initial(authority))) == []


OURS = b"\xe9"
"""The first octet of a connection ID that may be from a proxy with several workers; from one with a single worker any may."""
SHORT = {
    "noise": [b"\x40" + OURS + NOISE.randbytes(size) for size in range(8, 1400, 31)],
    "the largest datagrams": [b"\x7f" + OURS + NOISE.randbytes(65000) for _ in range(5)],
    "HTTP/1.1": [b"GET /never HTTP/1.1\r\nhost: a.example.com\r\n\r\n" + bytes(1200)],
    "a flood": [b"\x40" + OURS + NOISE.randbytes(60) for _ in range(500)],
}


@pytest.mark.parametrize("name", SHORT)
async def test_short_headers_of_no_connection_get_a_smaller_stateless_reset_at_most(proxy, guard, name):
    """For all that we know it is a client of before a crash (RFC 9000, section 10.3): a reset does not amplify what a forger sends."""
    sent = SHORT[name]
    with guard.case():
        answers = said_to(proxy.port, sent)
        assert len(answers) <= len([data for data in sent if len(data) > 21])
        assert all(21 <= len(answer) <= 42 and answer[0] & 0xC0 == 0x40 for answer in answers)
        assert sum(map(len, answers)) < sum(map(len, sent))
        assert answers or not sent[0][1:].startswith(OURS)


async def test_an_unknown_version_is_told_the_known_ones(authority, proxy, guard):
    """And a small datagram with an unknown version is not answered (RFC 9000, section 6.1)."""
    first = initial(authority)
    strange = first[:1] + b"\x0a\x0b\x0c\x0d" + first[5:]
    with guard.case():
        (answer,) = said_to(proxy.port, [strange])
        assert answer[0] & 0x80
        assert answer[1:5] == bytes(4)
        versions = answer[7 + answer[5] + answer[6 + answer[5]] :]
        assert b"\0\0\0\x01" in [versions[at : at + 4] for at in range(0, len(versions), 4)]
        assert len(answer) < len(strange)
        assert said_to(proxy.port, [strange[:1199]]) == []


async def test_a_flood_of_unknown_versions_is_answered_in_moderation(authority, proxy, guard):
    first = initial(authority)
    strange = [b"\xc0\x0a\x0b\x0c\x0d" + first[5:]] * 500
    with guard.case():
        answers = said_to(proxy.port, strange)
        assert sum(map(len, answers)) < sum(map(len, strange)) / 5


async def test_an_initial_again_and_again_is_one_handshake(authority, proxy, guard):
    """Three times as much comes back as was sent, at most, to an address that is not validated (RFC 9000, section 8.1)."""
    first = initial(authority)
    with guard.case():
        before = guard.metrics()
        answers = said_to(proxy.port, [first] * 3, wait=1.0)
        assert 0 < sum(map(len, answers)) <= 3 * 3 * len(first)
        assert guard.metrics()["http3_connections_total"] == before["http3_connections_total"]


async def test_packets_with_wrong_tags_within_a_connection_do_it_no_harm(authority, proxy, guard):
    """Whoever sees a connection's IDs can send packets for it, but none that is believed."""
    with guard.case():
        async with raw3(authority, proxy.port) as client:
            await served(client)
            cid = client.quic._peer_cid.cid
            said_to(proxy.port, [b"\x40" + cid + NOISE.randbytes(size) for size in range(10, 1200, 50)])
            said_to(proxy.port, [b"\xe0\0\0\0\x01" + bytes((len(cid),)) + cid + b"\x08" + bytes(8) + NOISE.randbytes(1200)])
            await served(client)


# Messages that are malformed cost their stream (section 4.1.2)

HEADS = {
    "a field name in upper case": (request(b"/never", (b"X-Field", b"1")), "field_name"),
    "an empty field name": (request(b"/never", (b"", b"1")), "field_name"),
    "a space in a field name": (request(b"/never", (b"x field", b"1")), "field_name"),
    "NUL in a field value": (request(b"/never", (b"x-field", b"a\0")), "field_value"),
    "a line end in a field value": (request(b"/never", (b"x-field", b"1\r\nx-injected: 2")), "field_value"),
    "a space before a value": (request(b"/never", (b"x-field", b" 1")), "field_value"),
    "connection": (request(b"/never", (b"connection", b"close")), "connection_field"),
    "transfer-encoding": (request(b"/never", (b"transfer-encoding", b"chunked")), "connection_field"),
    "upgrade": (request(b"/never", (b"upgrade", b"h2c")), "connection_field"),
    "te that is not trailers": (request(b"/never", (b"te", b"gzip")), "connection_field"),
    "a pseudo-field behind a regular one": ([*NEVER[:3], (b"x-field", b"1"), NEVER[3]], "pseudo_field"),
    "a pseudo-field twice": ([*NEVER, NEVER[0]], "pseudo_field"),
    "an unknown pseudo-field": ([*NEVER, (b":user", b"root")], "pseudo_field"),
    "no method": (NEVER[1:], "pseudo_field"),
    "no path": (NEVER[:3], "pseudo_field"),
    "no authority": ([*NEVER[:2], NEVER[3]], "authority"),
    "host against authority": (request(b"/never", (b"host", b"b.example.com")), "authority"),
    "an empty path": (request(b""), "path"),
    "dot segments": (request(b"/a/../never"), "path"),
    "a whole request in the path": (request(b"/never HTTP/1.1\r\nhost: b\r\n\r\n"), "field_value"),
    "a space in the method": (request(b"/never", method=b"GET /"), "method"),
    "content-length twice with other values": (request(b"/never", (b"content-length", b"0"), (b"content-length", b"1")), "content_length"),
    "content-length without a body": (request(b"/never", (b"content-length", b"5")), "body_length"),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_malformed_head_costs_its_stream(authority, proxy, guard, name):
    """A neighbour that is in progress, and one that begins afterwards, are served on the same connection."""
    fields, reason = HEADS[name]
    with guard.case(rejected(VERSION, reason)):
        async with raw3(authority, proxy.port) as client:
            neighbour = client.stream(head(request(b"/upload", method=b"POST")))
            refused = await client.answer(client.stream(head(fields), end=True))
            assert (refused.status, refused.reset) == (0, MESSAGE_ERROR)
            client.send(neighbour, frame(r.DATA, b"abc"), end=True)
            assert (await client.answer(neighbour)).status == 200
            await served(client)


ANSWERED = {
    "CONNECT": ([(b":method", b"CONNECT"), (b":authority", b"a.example.com:443")], 501, "not_implemented"),
    "extended CONNECT": (request(b"/never", (b":protocol", b"websocket"), method=b"CONNECT"), 501, None),
    "an unknown expectation": (request(b"/never", (b"expect", b"200-maybe")), 417, "expect"),
    "too many fields": (request(b"/never", *[(b"x", b"1")] * 200), 431, "too_many_fields"),
    "a section beyond 32 KiB": (request(b"/never", (b"x-field", b"a" * 33000)), 431, "header_too_large"),
    "a section beyond a megabyte": (request(b"/never", (b"x-field", b"a" * 1100000)), 431, "header_too_large"),
}


@pytest.mark.parametrize("name", ANSWERED)
async def test_what_a_client_may_learn_from_gets_an_answer(authority, proxy, guard, name):
    fields, status, reason = ANSWERED[name]
    with guard.case(*([rejected(VERSION, reason)] if reason else [])):
        async with raw3(authority, proxy.port) as client:
            answer = await client.answer(client.stream(head(fields), end=True))
            assert answer.status == status
            await served(client)


async def test_a_bomb_of_static_references_is_counted_before_it_is_read(authority, proxy, guard):
    """A reference of one byte for each field: too many fields, and no memory for them."""
    before = proxy.rss()
    with guard.case(rejected(VERSION, "too_many_fields")):
        async with raw3(authority, proxy.port) as client:
            answer = await client.answer(client.stream(frame(r.HEADERS, b"\0\0" + b"\xd1" * 30000), end=True))
            assert answer.status == 431
            await served(client)
    assert proxy.rss() - before < 8 * 1024 * 1024


POST = request(b"/hello", (b"content-length", b"3"), method=b"POST")
BODIES = {
    "more DATA than content-length": (frame(r.DATA, b"abcdef"), "body_length"),
    "less DATA than content-length": (frame(r.DATA, b"ab"), "body_length"),
    "no DATA where content-length says there is some": (b"", "body_length"),
    "trailers with a pseudo-field": (frame(r.DATA, b"abc") + head([(b":path", b"/never")]), "trailers"),
    "content-length as a trailer": (frame(r.DATA, b"abc") + head([(b"content-length", b"3")]), "trailers"),
    "a trailer in upper case": (frame(r.DATA, b"abc") + head([(b"X-A", b"1")]), "field_name"),
    "too many trailers": (frame(r.DATA, b"abc") + head([(b"x", b"1")] * 200), "too_many_fields"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_rest_of_a_request_costs_its_stream(authority, proxy, guard, name):
    """The head was accepted; /hello answers only a complete request, so that an answer would show."""
    rest, reason = BODIES[name]
    with guard.case(rejected(VERSION, reason)):
        async with raw3(authority, proxy.port) as client:
            stream = client.stream(head(POST))
            client.send(stream, rest, end=True)
            answer = await client.answer(stream)
            assert (answer.status, answer.reset) == (0, MESSAGE_ERROR)
            await served(client)


async def test_a_stream_that_is_reset_within_its_head_costs_itself(authority, proxy, guard):
    with guard.case():
        async with raw3(authority, proxy.port) as client:
            stream = client.stream(head(NEVER)[:10])
            client.quic.reset_stream(stream, CANCELLED)
            client.transmit()
            await served(client)


async def test_unknown_frames_and_streams_are_ignored(authority, proxy, guard):
    """Grease in every place where it is allowed (RFC 9114, sections 7.2.8 and 6.2.3)."""
    grease = frame(0x21 + 31 * 7, b"grease")
    with guard.case():
        async with raw3(authority, proxy.port, control=False) as client:
            client.control(frame(r.SETTINGS, varint(0x21 + 31 * 3) + b"\x01") + grease)
            client.unidirectional(varint(0x21 + 31 * 5) + b"whatever")
            stream = client.stream(grease + head(request(b"/hello", method=b"POST")) + grease)
            client.send(stream, frame(r.DATA, b"abc") + grease + head([(b"x-a", b"1")]) + grease, end=True)
            answer = await client.answer(stream)
            assert (answer.status, answer.body) == (200, HELLO)


async def test_one_byte_at_a_time_changes_nothing(authority, proxy, guard):
    with guard.case():
        async with raw3(authority, proxy.port) as client:
            data = head(request())
            stream = client.stream()
            for at in range(len(data)):
                client.send(stream, data[at : at + 1], end=at == len(data) - 1)
            answer = await client.answer(stream)
            assert (answer.status, answer.body) == (200, HELLO)

"""Our bounded HPACK against the hpack library, and at its bounds."""

import pytest
from h2.errors import ErrorCodes
from hpack import Decoder as LibraryDecoder
from hpack import Encoder as LibraryEncoder

from proxy.engine.h2_fault import Fault
from proxy.engine.h2_hpack import TABLE_BYTES, Decoder, Encoder
from proxy.engine.seam import EngineLimits

LIMITS = EngineLimits(header_bytes=8192, header_count=50)
# RFC 7541, appendix C.4: three requests with Huffman coding on one connection.
C4 = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", [(b":authority", b"www.example.com")]),
    ("828684be5886a8eb10649cbf", [(b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        [(b":authority", b"www.example.com"), (b"custom-key", b"custom-value")],
    ),
]


def code(decoder, block):
    with pytest.raises(Fault) as caught:
        decoder.decode(block)
    return caught.value.error_code


def test_the_examples_of_the_rfc():
    decoder = Decoder(LIMITS)
    paths = [b"/", b"/", b"/index.html"]
    schemes = [b"http", b"http", b"https"]
    for (block, rest), path, scheme in zip(C4, paths, schemes, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == [(b":method", b"GET"), (b":scheme", scheme), (b":path", path), *rest]


def test_what_the_library_encodes_we_decode_and_the_other_way_round():
    ours, theirs = Encoder(), LibraryDecoder()
    encoder, decoder = LibraryEncoder(), Decoder(LIMITS)
    for number in range(300):
        fields = [
            (b":status", b"200"),
            (b"content-length", b"%d" % number),
            (b"x-%d" % (number % 90), b"v" * (number % 130)),
            (b"set-cookie", b"a=%d" % number),
            (b"x-long", b"w" * number),
            (b"x-repeated", b"same"),
        ]
        assert [tuple(field) for field in theirs.decode(ours.encode(fields), raw=True)] == fields
        assert decoder.decode(encoder.encode(fields)) == fields


def test_what_repeats_is_one_byte_the_second_time():
    encoder = Encoder()
    fields = [(b":status", b"200"), (b"server", b"qproxy"), (b"content-type", b"text/html")]
    assert encoder.encode(fields) == b"\x88\x76\x06qproxy\x5f\x09text/html"
    assert encoder.encode(fields) == b"\x88\xbf\xbe"


def test_a_table_that_the_client_shrank_and_grew_is_announced_by_both_sizes():
    ours, theirs = Encoder(), LibraryDecoder()
    fields = [(b"x-a", b"1"), (b"x-b", b"2")]
    theirs.decode(ours.encode(fields))
    ours.header_table_size = 0
    ours.header_table_size = 100_000
    assert ours.header_table_size == TABLE_BYTES
    block = ours.encode(fields)
    assert block[:4] == b"\x20\x3f\xe1\x1f"
    assert [tuple(field) for field in theirs.decode(block, raw=True)] == fields
    ours.header_table_size = 40
    theirs.max_allowed_table_size = 40
    for _ in range(3):
        assert [tuple(field) for field in theirs.decode(ours.encode(fields), raw=True)] == fields


def test_a_section_beyond_the_limit_is_none_and_leaves_the_tables_right():
    encoder, decoder = LibraryEncoder(), Decoder(LIMITS)
    large = [(b"x-%d" % number, bytes([number]) * 1000) for number in range(10)]
    assert decoder.decode(encoder.encode(large, huffman=False)) is None
    last = large[-1:]
    assert decoder.decode(encoder.encode(last)) == last


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (b"\0" * 16385, ErrorCodes.ENHANCE_YOUR_CALM),
        (b"\x82" * 201, ErrorCodes.ENHANCE_YOUR_CALM),
        (b"\x20" * 201, ErrorCodes.ENHANCE_YOUR_CALM),
        (b"\x82\x20", ErrorCodes.COMPRESSION_ERROR),
        (b"\x80", ErrorCodes.COMPRESSION_ERROR),
        (b"\xbe", ErrorCodes.COMPRESSION_ERROR),
        (b"\xff", ErrorCodes.COMPRESSION_ERROR),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", ErrorCodes.COMPRESSION_ERROR),
        (b"\x7f", ErrorCodes.COMPRESSION_ERROR),
        (b"\x40", ErrorCodes.COMPRESSION_ERROR),
        (b"\x40\x05abc", ErrorCodes.COMPRESSION_ERROR),
        (b"\x40\x01a\x7f\xff\xff\xff\xff\x0f", ErrorCodes.COMPRESSION_ERROR),
        (b"\x40\x81\xff\x00", ErrorCodes.COMPRESSION_ERROR),
        (b"\x3f\xe2\x1f", ErrorCodes.COMPRESSION_ERROR),
    ],
)
def test_hostile_blocks(block, error):
    assert code(Decoder(LIMITS), block) == error


def test_what_is_read_to_its_end():
    field = (b":method", b"GET")  # 42 bytes a time
    assert Decoder(LIMITS).decode(b"\x82" * 195) == [field] * 195
    assert Decoder(LIMITS).decode(b"\x82" * 200) is None

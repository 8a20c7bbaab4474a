"""What breaks QPACK's rules where the dynamic table has no bytes (RFC 9204, section 6)."""

from collections.abc import Sequence

from harness import raw3 as r
from harness.conformance.case import H3, Case, Otherwise, Qpack
from harness.conformance.http3 import NEVER, asks, streams
from harness.raw3 import frame, section

ENCODER, DECODER = b"\2", b"\3"


def section_of(name: str, part: str, block: bytes) -> Case:
    return Case(name, f"RFC 9204, {part}", asks(frame(r.HEADERS, block)), Qpack.QPACK_DECOMPRESSION_FAILED)


def to_decoder(name: str, part: str, data: bytes) -> Case:
    return Case(name, f"RFC 9204, {part}", streams(ENCODER + data), Qpack.QPACK_ENCODER_STREAM_ERROR)


def to_encoder(name: str, part: str, data: bytes) -> Case:
    return Case(name, f"RFC 9204, {part}", streams(DECODER + data), Qpack.QPACK_DECODER_STREAM_ERROR)


QPACK: Sequence[Case] = (
    section_of("QPACK garbage", "2.2", b"\xff" * 50),
    section_of("a reference to the dynamic table", "3.2.4", b"\x02\0\x80"),
    section_of("a section that waits for an insertion", "2.1.2", b"\x02\0\xd1"),
    section_of("a reference behind the base", "3.2.6", b"\0\0\x10"),
    section_of("a dynamic entry without a Required Insert Count", "2.2.3", b"\0\0\x80"),
    section_of("a static index that is not there", "3.1", b"\0\0\xff\x7f"),
    section_of("an integer without an end", "4.1.1", b"\0\0" + b"\xff" * 12),
    section_of("a field section that is cut off", "4.5", section(NEVER)[:-3]),
    Case(
        "a Huffman code that is padded with zeros",
        "RFC 9204, 4.1.2",
        asks(frame(r.HEADERS, b"\0\0\x51\x81\x00")),
        Qpack.QPACK_DECOMPRESSION_FAILED,
        except_for={"native": Otherwise(None, "quiche reads over the padding; what it decodes is judged like any other field.")},
    ),
    section_of("an empty HEADERS frame", "4.5.1", b""),
    to_decoder("an insertion into a table of size 0", "3.2.2", b"\x41a\x01b"),
    to_decoder("an insertion with a static name", "4.3.2", b"\xc1\x01b"),
    to_decoder("a duplicate of nothing", "4.3.4", b"\0"),
    to_decoder("a table of 4096 bytes", "4.3.1", b"\x3f\xe1\x1f"),
    to_encoder("an acknowledgement of nothing", "4.4.1", b"\x80"),
    to_encoder("an increment of 0", "4.4.3", b"\0"),
    to_encoder("an increment for nothing", "4.4.3", b"\1"),
    to_encoder("a cancellation with an integer without an end", "4.1.1", b"\x7f" + b"\xff" * 12),
    Case("a second encoder stream", "RFC 9204, 4.2", streams(ENCODER, ENCODER), H3.H3_STREAM_CREATION_ERROR),
    Case("a second decoder stream", "RFC 9204, 4.2", streams(DECODER, DECODER), H3.H3_STREAM_CREATION_ERROR),
    Case("the encoder stream is closed", "RFC 9204, 4.2", streams(ENCODER, end=True), H3.H3_CLOSED_CRITICAL_STREAM),
    Case("the decoder stream is closed", "RFC 9204, 4.2", streams(DECODER, end=True), H3.H3_CLOSED_CRITICAL_STREAM),
)

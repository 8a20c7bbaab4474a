"""The conformance suite of QUIC and HTTP/3 as tables: what a hostile client sends, and the code that it must hear, whichever the engine."""

from collections.abc import Mapping, Sequence

from harness.conformance.case import Case
from harness.conformance.floods import FLOODS
from harness.conformance.handshake import HANDSHAKE
from harness.conformance.http3 import HTTP3
from harness.conformance.qpack import QPACK
from harness.conformance.transport import TRANSPORT

TABLES: Mapping[str, Sequence[Case]] = {
    "Handshakes": HANDSHAKE,
    "QUIC": TRANSPORT,
    "HTTP/3": HTTP3,
    "QPACK": QPACK,
    "Floods": FLOODS,
}

"""Words of HTTP/2 that every engine of it uses: codes, names and constants of ours. Knows no library, no stream and no connection."""

from proxy.errors import Reset
from proxy.message import Header

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 5, 6, 7, 8, 9, 11

RESET_CODES = {
    Reset.NO_ERROR: NO_ERROR,
    Reset.CANCEL: CANCEL,
    Reset.REFUSED: REFUSED_STREAM,
    Reset.INTERNAL: INTERNAL_ERROR,
    Reset.PROTOCOL: PROTOCOL_ERROR,
    Reset.EXCESSIVE_LOAD: ENHANCE_YOUR_CALM,
}
"""The code of RFC 9113, section 7, for each of our reasons."""

CODE_NAMES = (
    "no_error",
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
)
"""Names of the codes (RFC 9113, section 7) by number."""

_TOKENS = {
    PROTOCOL_ERROR: "protocol",
    INTERNAL_ERROR: "internal",
    FLOW_CONTROL_ERROR: "flow_control",
    STREAM_CLOSED: "stream_closed",
    FRAME_SIZE_ERROR: "frame_size",
    COMPRESSION_ERROR: "compression",
    ENHANCE_YOUR_CALM: "enhance_your_calm",
}

_CLIENT_RESETS = tuple(f"client: {name}" for name in CODE_NAMES)

STATUS: dict[int, Header] = {status: (b":status", b"%d" % status) for status in range(100, 600)}

NO_BODY = frozenset((204, 304))
"""Statuses without a body (RFC 9110, section 6.4.1); nor has 204 a content-length (8.6), and 304 only its resource's."""

LARGEST_WINDOW = 2**31 - 1

DRAIN_PING = b"qp-drain"
"""Sent behind the first GOAWAY: its acknowledgement says that the client has seen it (RFC 9113, section 6.8)."""


def token(code: int) -> str:
    """The token of ``ConnectionClosed.error``: a bounded set."""
    return _TOKENS.get(code, "protocol")


def client_reset(code: int) -> str:
    """The reason of ``StreamReset`` for the client's RST_STREAM: a bounded set."""
    return _CLIENT_RESETS[code] if code < len(_CLIENT_RESETS) else "client: unknown code"

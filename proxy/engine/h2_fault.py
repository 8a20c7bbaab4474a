"""What costs an HTTP/2 connection: one exception, with the code that GOAWAY says and the token that the metrics say.

Knows error codes (RFC 9113, section 7) and nothing else.
"""

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

_TOKENS: dict[int, str] = {
    ErrorCodes.PROTOCOL_ERROR: "protocol",
    ErrorCodes.INTERNAL_ERROR: "internal",
    ErrorCodes.FLOW_CONTROL_ERROR: "flow_control",
    ErrorCodes.STREAM_CLOSED: "stream_closed",
    ErrorCodes.FRAME_SIZE_ERROR: "frame_size",
    ErrorCodes.COMPRESSION_ERROR: "compression",
    ErrorCodes.ENHANCE_YOUR_CALM: "enhance_your_calm",
}


class Fault(ProtocolError):  # noqa: N818 - every name here would end in Error
    """A breach that costs the connection. One of h2's errors, so that ours and its own are handled in one place."""

    def __init__(self, code: ErrorCodes, detail: str) -> None:
        super().__init__(detail)
        self.error_code = code


def token(code: int) -> str:
    """The token of ``ConnectionClosed.error``: a bounded set."""
    return _TOKENS.get(code, "protocol")

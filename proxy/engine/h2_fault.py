"""What costs an HTTP/2 connection: one exception, with the code that GOAWAY says.

Knows error codes (RFC 9113, section 7) and nothing else.
"""

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError


class Fault(ProtocolError):  # noqa: N818 - every name here would end in Error
    """A breach that costs the connection. One of h2's errors, so that ours and its own are handled in one place."""

    def __init__(self, code: ErrorCodes, detail: str) -> None:
        super().__init__(detail)
        self.error_code = code

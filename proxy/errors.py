"""What can go wrong with an exchange, and the answer that the client gets for it.

A ``ProxyError`` is raised or passed where a fault is found; ``exchange.py`` turns it into a response in one place. Library exceptions
are translated where the library is called.
"""

import errno
from enum import Enum

OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""What the system says when the process, or all of them, may have no more file descriptors."""


class Side(Enum):
    """Whose fault it was: said in logs and metrics."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    PROXY = "proxy"


class Kind(Enum):
    """Every fault with its status code and its Proxy-Status error type (RFC 9209, section 2.3)."""

    BAD_REQUEST = (400, "http_request_error", Side.CLIENT)
    DENIED = (403, "http_request_denied", Side.CLIENT)
    NO_ROUTE = (404, "destination_not_found", Side.CLIENT)
    REQUEST_TIMEOUT = (408, "http_request_error", Side.CLIENT)
    BODY_TOO_LARGE = (413, "http_request_error", Side.CLIENT)
    MISDIRECTED = (421, "http_request_error", Side.CLIENT)
    CANCELLED = (499, "http_request_error", Side.CLIENT)
    INTERNAL = (500, "proxy_internal_error", Side.PROXY)
    DNS_ERROR = (502, "dns_error", Side.UPSTREAM)
    CONNECT_REFUSED = (502, "connection_refused", Side.UPSTREAM)
    UPSTREAM_CLOSED = (502, "connection_terminated", Side.UPSTREAM)
    UPSTREAM_PROTOCOL = (502, "http_protocol_error", Side.UPSTREAM)
    UPSTREAM_TLS = (502, "tls_protocol_error", Side.UPSTREAM)
    UPSTREAM_CERTIFICATE = (502, "tls_certificate_error", Side.UPSTREAM)
    OVERLOADED = (503, "proxy_internal_response", Side.PROXY)
    """Something of the proxy itself is used up: the request was sent nowhere."""
    NO_BACKEND = (503, "destination_unavailable", Side.UPSTREAM)
    CONNECT_TIMEOUT = (504, "connection_timeout", Side.UPSTREAM)
    RESPONSE_TIMEOUT = (504, "http_response_timeout", Side.UPSTREAM)
    READ_TIMEOUT = (504, "connection_read_timeout", Side.UPSTREAM)
    TOTAL_TIMEOUT = (504, "http_response_timeout", Side.PROXY)

    def __init__(self, status: int, proxy_status: str, side: Side) -> None:
        self.status = status
        self.proxy_status = proxy_status
        self.side = side


class ProxyError(Exception):
    """One fault of one exchange.

    ``retry`` says that the request provably did not reach the application, so that even a request that is not idempotent may be
    tried on the next candidate. ``retry_after`` is in seconds, for the client; 0: what is usual for the kind.
    """

    def __init__(self, kind: Kind, detail: str = "", *, retry: bool = False, retry_after: int = 0) -> None:
        super().__init__(detail or kind.name.lower().replace("_", " "))
        self.kind = kind
        self.detail = detail
        self.retry = retry
        self.retry_after = retry_after


class Reset(Enum):
    """Why a stream or a connection is cut: each engine has its own code for it (RFC 9113 section 7, RFC 9114 section 8.1)."""

    NO_ERROR = "no_error"
    CANCEL = "cancel"
    REFUSED = "refused"
    INTERNAL = "internal"
    PROTOCOL = "protocol"
    EXCESSIVE_LOAD = "excessive_load"

"""The answers that the proxy gives by itself: health, and the text that goes with a fault.

They tell the client what it can act on and nothing of the inside: backends' addresses stay in the log, found by the request id.
"""

from email.utils import formatdate
from http import HTTPStatus

from proxy.errors import Kind, ProxyError, Side
from proxy.message import Header, Headers
from proxy.policy.answer import Respond

HEALTH_HEADERS: tuple[Header, ...] = ((b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"))
HEALTH_METHODS = frozenset((b"GET", b"HEAD"))

READY = Respond(200, HEALTH_HEADERS, b"OK")
DRAINING = Respond(503, HEALTH_HEADERS, b"draining\n")
"""No new clients: those that are there are to finish."""
OVERLOADED = Respond(503, HEALTH_HEADERS, b"overloaded\n")
"""New connections have to wait."""
POOLS_DOWN = Respond(503, HEALTH_HEADERS, b"pools down\n")
"""Fewer pools are up than ``server.health.pools_up``."""
NO_WORKER = Respond(503, HEALTH_HEADERS, b"no worker serves\n")
"""All of them are about to be started again."""
HANGS = Respond(503, HEALTH_HEADERS, b"event loop hangs\n")
"""The only process has served nothing for seconds."""
NOT_ALLOWED = Respond(405, (*HEALTH_HEADERS, (b"allow", b"GET, HEAD")), b"expected GET or HEAD\n")

_OUTAGE_SECONDS, _OVERLOAD_SECONDS = 1, 5
"""Retry-After where nothing better is known: a backend may be up in a moment, a lack of descriptors takes some seconds."""

_date: tuple[int, Header] = (0, (b"date", b""))


def date_header(now: float) -> Header:
    """The Date field for *now* (seconds since the epoch), made once a second (RFC 9110, section 6.6.1)."""
    global _date  # noqa: PLW0603  # one value for the process, replaced whole
    second = int(now)
    if _date[0] != second:
        _date = (second, (b"date", formatdate(second, usegmt=True).encode()))
    return _date[1]


def failure_headers(error: ProxyError, request_id: bytes, now: float) -> Headers:
    """Fields of an error answer: Proxy-Status (RFC 9209) and the request id."""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"proxy-status", b"qproxy; error=" + error.kind.proxy_status.encode()),
        (b"x-request-id", request_id),
        date_header(now),
    ]
    if error.kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        usual = _OVERLOAD_SECONDS if error.kind is Kind.OVERLOADED else _OUTAGE_SECONDS
        headers.append((b"retry-after", b"%d" % (error.retry_after or usual)))
    return headers


def plain_text(error: ProxyError, request_id: bytes) -> bytes:
    """The body of an error answer, for people."""
    kind = error.kind
    phrase = "Content Too Large" if kind is Kind.BODY_TOO_LARGE else HTTPStatus(kind.status).phrase  # RFC 9110's word; Python's is older
    if kind.side is Side.CLIENT:
        reason = error.detail
    elif kind is Kind.INTERNAL:
        reason = "The proxy met a fault of its own."
    else:
        reason = kind.name.lower().replace("_", " ")
    text = f"{kind.status} {phrase}\n{reason}\nrequest id: {request_id.decode('latin-1')}\n"
    return text.encode()

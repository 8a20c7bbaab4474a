"""HTTP/1.1 to backends (RFC 9112), without I/O: one request after the other on one connection.

Knows how a request is framed and where its response ends. Bytes are ``h1_wire``'s, fields are ``validate``'s. A backend is trusted more
than a client, but not with the framing: what could be read in two ways ends the connection.
"""

from http import HTTPStatus

from proxy.engine.events import Informational, ResponseBody, ResponseEnd, ResponseHead, UpstreamEvent, UpstreamRequest
from proxy.engine.grammar import Malformed, quote
from proxy.engine.h1_wire import ChunkDecoder, encode_chunk, encode_fields, encode_last_chunk, find_head, split_lines
from proxy.engine.validate import RESPONSE_LIMITS, plain_response
from proxy.message import Headers

INFORMATIONAL_RESPONSES = 32
"""1xx responses to one request; more are a fault of the backend."""

# What a response is at: none asked for, its head, or how its body is framed.
_IDLE, _HEAD, _SIZED, _CHUNKED, _UNTIL_CLOSE, _FAILED = range(6)

_EXPECT_CONTENT = frozenset((b"POST", b"PUT", b"PATCH"))


class UpstreamProtocolError(Exception):
    """The connection can't be used any more: the backend broke the protocol, or a body differs from its content-length."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class H1Client:
    """One connection to a backend. Every method raises UpstreamProtocolError, after which the connection is to be closed."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_data",
        "_head_only",
        "_informed",
        "_keep",
        "_left",
        "_request_left",
        "_response",
        "_scanned",
        "_sent",
    )

    def __init__(self) -> None:
        self._data = b""  # of a head or a chunk that is not complete
        self._scanned = 0
        self._response = _IDLE
        self._chunks: ChunkDecoder | None = None
        self._left = 0
        self._informed = 0
        self._keep = True
        self._head_only = False
        self._sent = True
        self._chunked = False
        self._request_left = 0

    @property
    def idle(self) -> bool:
        """No request is in progress."""
        return self._response == _IDLE and self._sent

    @property
    def reusable(self) -> bool:
        """Another request may be started: the last exchange is complete in both directions and nothing ends the connection."""
        return self._response == _IDLE and self._sent and self._keep and not self._data

    # Requests

    def start(self, request: UpstreamRequest) -> bytes:
        """A request head. The body is framed by its content-length where that is known, else in chunks."""
        if self._response != _IDLE or not self._sent or not self._keep or self._data:  # not reusable
            raise UpstreamProtocolError("the connection is not free for a request")
        method, end, length = request.method, request.end, request.content_length
        framing = b""
        self._chunked = False
        self._request_left = 0
        if length is not None:
            if end and length:
                raise UpstreamProtocolError("the request's content-length is not that of its body")
            self._request_left = length
        elif not end:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        elif method in _EXPECT_CONTENT:
            framing = b"content-length: 0\r\n"  # RFC 9110, section 8.6
        self._response = _HEAD
        self._sent = end
        self._head_only = method == b"HEAD"
        self._informed = 0
        fields = encode_fields(request.headers)
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%b\r\n" % (method, request.target, request.host, fields, request.lines, framing)

    def encode_data(self, data: bytes) -> bytes:
        """Body bytes of the request."""
        if self._chunked:
            return encode_chunk(data) if data else b""
        if len(data) > self._request_left:
            raise UpstreamProtocolError("the request body is longer than its content-length")
        self._request_left -= len(data)
        return data

    def encode_end(self, trailers: Headers) -> bytes:
        """The end of the request; trailers need a chunked body and are left out otherwise."""
        self._sent = True
        if self._chunked:
            self._chunked = False
            return encode_last_chunk(trailers)
        if self._request_left:
            raise UpstreamProtocolError("the request body is shorter than its content-length")
        return b""

    # Responses

    def receive(self, data: bytes) -> list[UpstreamEvent]:
        """Take bytes of the backend."""
        if not data:
            return []
        if self._data:
            data = self._data + data
            self._data = b""
        events: list[UpstreamEvent] = []
        try:
            at = self._read(data, events)
        except Malformed as fault:
            self._response = _FAILED
            raise UpstreamProtocolError(f"{fault.reason}: {fault.detail}") from None
        except UpstreamProtocolError:
            self._response = _FAILED
            raise
        if at < len(data):
            if self._response == _IDLE:
                self._keep = False  # bytes that nobody asked for: what follows can't be told from an answer
            else:
                self._data = data[at:]
        return events

    def _read(self, data: bytes, events: list[UpstreamEvent]) -> int:
        """Append the events of *data*; returns how far it came."""
        at = 0
        begun: ResponseHead | None = None
        while (response := self._response) == _HEAD:
            end = find_head(data, at, self._scanned, RESPONSE_LIMITS.header_bytes)
            if end < 0:
                self._scanned = len(data) - at
                return at
            self._scanned = 0
            begun = self._head(data[at:end], events)
            at = end + 4
            if at == len(data):
                return at
        if response == _SIZED:
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            if self._left:
                events.append(ResponseBody(piece))
                return at
            self._response = _IDLE
            if begun is not None:
                begun.body = piece
                begun.end = True
                return at
            events.append(ResponseBody(piece))
            events.append(ResponseEnd([]))
        elif response == _CHUNKED:
            at = self._read_chunks(data, at, begun, events)
        elif response == _UNTIL_CLOSE:
            events.append(ResponseBody(data[at:]))
            at = len(data)
        elif begun is None:
            raise UpstreamProtocolError("bytes without a request")
        return at

    def _head(self, text: bytes, events: list[UpstreamEvent]) -> ResponseHead | None:
        """Take a head, without its empty line; returns it when it is a final one."""
        lines = split_lines(text, RESPONSE_LIMITS)
        line = lines.pop(0)
        status, http_1_0 = _OFTEN.get(line) or _status_line(line)
        head, framing = plain_response(status, lines)
        if status < 200:
            self._informational(status, head.headers, events)
            return None
        coding, connection, length = framing.transfer_encoding, framing.connection, head.content_length
        if coding and length is not None:
            raise Malformed("transfer_encoding", "beside content-length")
        if http_1_0:
            self._keep = False
        elif connection and connection != b"keep-alive":
            self._keep = b"close" not in [option.strip() for option in connection.split(b",")]
        if self._head_only or status in (204, 304):
            self._response = _IDLE
            head.end = True
        elif coding:
            if coding != b"chunked" or http_1_0:
                raise Malformed("transfer_encoding", quote(coding))
            self._response = _CHUNKED
            self._chunks = ChunkDecoder(RESPONSE_LIMITS)
        elif length is None:
            self._response = _UNTIL_CLOSE
            self._keep = False
        elif length:
            self._response = _SIZED
            self._left = length
        else:
            self._response = _IDLE
            head.end = True
        events.append(head)
        return head

    def _informational(self, status: int, headers: Headers, events: list[UpstreamEvent]) -> None:
        self._informed += 1
        if status == 101:
            raise Malformed("status", "101 without an upgrade")
        if self._informed > INFORMATIONAL_RESPONSES:
            raise Malformed("status", "too many informational responses")
        events.append(Informational(status, headers))

    def _read_chunks(self, data: bytes, at: int, begun: ResponseHead | None, events: list[UpstreamEvent]) -> int:
        chunks = self._chunks
        assert chunks is not None
        pieces: list[bytes] = []
        at = chunks.decode(data, at, pieces)
        trailers = chunks.trailers
        if trailers is not None:
            self._response = _IDLE
            self._chunks = None
            if begun is not None and pieces and not trailers:
                begun.body = b"".join(pieces)
                begun.end = True
                return at
        if pieces:
            events.append(ResponseBody(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        if trailers is not None:
            events.append(ResponseEnd(trailers))
        return at

    def receive_eof(self) -> list[UpstreamEvent]:
        """The backend closed its side: the end of a close-delimited body, nothing to an idle connection, else a fault."""
        self._keep = False
        if self._response == _UNTIL_CLOSE:
            self._response = _IDLE
            return [ResponseEnd([])]
        if self._response == _IDLE:
            return []
        before = self._response == _HEAD and not self._data
        self._response = _FAILED
        raise UpstreamProtocolError("closed before a response" if before else "closed before the response was complete")


def _status_line(line: bytes) -> tuple[int, bool]:
    """The status, and whether the version is HTTP/1.0 (RFC 9112, section 4). Raises Malformed."""
    version, code = line[:9], line[9:12]
    if version not in (b"HTTP/1.1 ", b"HTTP/1.0 ") or len(code) != 3 or not code.isdigit() or line[12:13] not in (b" ", b""):
        raise Malformed("syntax", quote(line))
    status = int(code)
    if not 100 <= status <= 599:
        raise Malformed("status", quote(line))
    return status, version == b"HTTP/1.0 "


_OFTEN = {f"HTTP/1.1 {int(status)} {status.phrase}".encode(): (int(status), False) for status in HTTPStatus}
"""The status lines that nearly every backend sends."""

"""What comes in on an HTTP/2 connection, cut into whole frames and metered before a library sees any of it.

Knows frame headers (RFC 9113, section 4.1) and the budget for frames that carry nothing. Knows no streams, no HPACK and no payloads:
what a frame means, and whether it may stand where it stands, is the library's affair. Why cut at all: the library takes any piece, but
then nobody can tell how many of its frames should have given an event (one that gave none is a fault, see ``h2_ngh2``), whether a head
is in progress, or where within a batch a flood went too far; and ngh2 0.3 forgets to credit the first part of a DATA frame whose stream
ends between two pieces.
"""

from struct import Struct

from proxy.engine.h2_abuse import CONTROL_BURST, CONTROL_RATE, Bucket
from proxy.engine.h2_terms import ENHANCE_YOUR_CALM, FRAME_SIZE_ERROR

FRAME_BYTES = 16384
"""Longest frame that a client may send: the initial SETTINGS_MAX_FRAME_SIZE, never raised."""

LARGEST_STREAM = 2**31 - 1

HEADS_AT_ONCE = 16
"""Header blocks given to the library before we look at what came of them. It copies every field, and a reference of one byte may stand for
4 KB, so that a record of 16 KB could else become 50 MB of requests to refuse."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 2, 3, 4, 5, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_EVENTFUL = frozenset((_SETTINGS, 6, 7, 8, 16))  # and PING, GOAWAY, WINDOW_UPDATE, PRIORITY_UPDATE: an event each
_PADDING_ONLY = 256  # a padded DATA frame of this length may be nothing but padding: a pad length octet and 255
_HEAD = Struct(">LBL")  # length and type, flags, stream
_HEAD_BYTES = 9


class Frames:
    """Received bytes of one connection."""

    __slots__ = ("_begun", "_block", "_rest", "control", "expected", "fault", "highest", "more", "settled", "suspect")

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._block = False  # within a header block that has not ended
        self.control = Bucket(CONTROL_BURST, CONTROL_RATE)
        self.highest = 0
        """The largest stream that the client named in HEADERS."""
        self.settled = False
        """The client's first SETTINGS have come."""
        self.expected = 0
        """Events that the library owes for what ``whole`` gave last."""
        self.suspect = False
        """What ``whole`` gave last has frames whose faults show only in what the library wants to send."""
        self.more = False
        """There are more whole frames: ``whole`` is to be asked again, with nothing."""
        self.fault: tuple[int, str] | None = None
        """Code and detail of what ends the connection, once the library has had what came before it."""

    @property
    def held(self) -> bool:
        """True while anything that was received waits for its rest, or the first SETTINGS have not come."""
        return bool(self._rest) or self._block or not self.settled

    @property
    def head_in_progress(self) -> bool:
        """True while the preface, the first SETTINGS or part of a header section was received and not yet all of it."""
        rest = self._rest
        return not self.settled or self._block or (len(rest) > 3 and (rest[3] == _HEADERS or rest[3] == _CONTINUATION))

    def whole(self, data: bytes, now: float) -> bytes | memoryview:
        """The whole frames of what was received up to now (seconds) and not yet given, the preface before the first of them."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        self.expected = 0
        self.suspect = self.more = False
        at = heads = 0
        if not self._begun:
            if len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._rest = data
                return b""
            self._begun = True
            at = len(PREFACE)
        end = len(data)
        head = _HEAD.unpack_from
        while at + _HEAD_BYTES <= end:
            word, flags, stream = head(data, at)
            size = word >> 8
            if size > FRAME_BYTES:
                self.fault = FRAME_SIZE_ERROR, "frame longer than SETTINGS_MAX_FRAME_SIZE"
                break
            stop = at + _HEAD_BYTES + size
            if stop > end:
                break
            kind = word & 0xFF
            if kind == _HEADERS:
                if heads == HEADS_AT_ONCE:
                    self.more = True
                    break
                heads += 1
                if flags & _END_HEADERS:
                    self.expected += 1
                else:
                    self._block = self.suspect = True
                stream &= LARGEST_STREAM  # the other bit is reserved
                if stream > self.highest:
                    self.highest = stream
                elif not self._spend(now):
                    break
            elif kind == _DATA:
                self.expected += 1
                hollow = not size or (flags & _PADDED and size <= _PADDING_ONLY)
                if hollow and not flags & _END_STREAM and not self._spend(now):
                    break
            elif kind == _CONTINUATION:
                self.suspect = True
                if self._block and flags & _END_HEADERS:
                    self._block = False
                    self.expected += 1
            elif kind == _RST_STREAM:
                self.expected += 1
            else:
                if not self._spend(now):
                    break
                if kind in _EVENTFUL:
                    self.expected += 1
                    if kind == _SETTINGS and not flags & _ACK:
                        self.settled = True
                else:
                    self.suspect = True
            at = stop
        if at >= end:
            return data
        if self.fault is None:
            self._rest = data[at:]
        return memoryview(data)[:at]

    def _spend(self, now: float) -> bool:
        """Count a frame that asks for work without carrying any."""
        if self.control.spend(now):
            return True
        self.fault = ENHANCE_YOUR_CALM, "too many control frames"
        return False

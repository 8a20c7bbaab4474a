"""The h2 library's connection, cut down to what serves a public edge: the only module that touches its private names.

Knows framing, SETTINGS and windows through h2 and hyperframe. Knows no requests. What h2 keeps doing: preface, frame parsing,
padding, CONTINUATION assembly, SETTINGS in both directions with all that hangs on them. What it does no more: the life of streams
and their header sections, since it answers the fault of one stream with the end of the connection (RFC 9113, section 5.4.2, asks for
the narrower error), keeps a record of 65,536 closed streams, and checks what ``validate`` checks better. Its state machine only ever
sees SETTINGS, so that a GOAWAY in either direction stops nothing.
"""

from h2.config import H2Configuration
from h2.connection import H2Connection as H2Library
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.windows import WindowManager
from hyperframe.exceptions import InvalidDataError
from hyperframe.frame import Frame, SettingsFrame

from proxy.engine.h2_fault import Fault
from proxy.engine.h2_hpack import Decoder, Encoder
from proxy.engine.seam import EngineLimits

DEFAULT_WINDOW = 65535
"""Every window before SETTINGS say otherwise (RFC 9113, section 6.9.2)."""

CONTINUATIONS = 16
"""CONTINUATION frames of one header block: honest encoders fill their frames, so three carry the largest section that we take
(CVE-2024-27316 and its family sent them without end)."""

_KNOWN_SETTINGS = frozenset(
    (
        SettingCodes.HEADER_TABLE_SIZE,
        SettingCodes.ENABLE_PUSH,
        SettingCodes.MAX_CONCURRENT_STREAMS,
        SettingCodes.INITIAL_WINDOW_SIZE,
        SettingCodes.MAX_FRAME_SIZE,
        SettingCodes.MAX_HEADER_LIST_SIZE,
    )
)
_HEADER_TYPES = frozenset((1, 9))  # HEADERS, CONTINUATION
_SETTINGS_TYPE = 4
_WINDOW_UPDATE_TYPE = 8


class Frames(FrameBuffer):
    """Received bytes, iterated as frames. Bounds the header block in progress, which h2 bounds by count of frames only."""

    def __init__(self, block_bytes: int) -> None:
        super().__init__(server=True)
        self.max_frame_size = 16384
        self._block_bytes = block_bytes

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        whole = super()._update_header_buffer(f)
        parts = self._headers_buffer
        if parts and (len(parts) > CONTINUATIONS or sum(len(part.data) for part in parts) > self._block_bytes):
            raise Fault(ErrorCodes.ENHANCE_YOUR_CALM, "header block too large")
        return whole

    def __next__(self) -> Frame:
        """The next whole frame. Raises Fault by the announced length: h2 itself looks only when all has come, up to 16 MiB later."""
        rest = self._data
        if len(rest) > 2 and (rest[0] << 16 | rest[1] << 8 | rest[2]) > self.max_frame_size:
            raise Fault(ErrorCodes.FRAME_SIZE_ERROR, "frame longer than SETTINGS_MAX_FRAME_SIZE")
        if len(rest) > 4 and rest[3] == _SETTINGS_TYPE and rest[4] & 1 and rest[:3] != b"\0\0\0":
            raise Fault(ErrorCodes.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")  # section 6.5; h2 says PROTOCOL_ERROR
        return super().__next__()

    def skip_zero_increment(self, error: ProtocolError) -> int:
        """The stream of the WINDOW_UPDATE of 0 that made h2 raise *error*, the frame being taken away; 0 for any other error."""
        rest = self._data
        if not isinstance(error.__cause__, InvalidDataError) or len(rest) < 13 or rest[3] != _WINDOW_UPDATE_TYPE or rest[:3] != b"\0\0\4":
            return 0
        stream = int.from_bytes(rest[5:9], "big") & 0x7FFFFFFF
        if stream:
            del rest[:13]
        return stream

    @property
    def head_in_progress(self) -> bool:
        """True while the preface or part of a header section was received and not yet all of it."""
        rest = self._data
        return bool(self._preamble_len or self._headers_buffer or (len(rest) > 3 and rest[3] in _HEADER_TYPES))


class Wire(H2Library):
    """h2's connection, server side, with bounds of our own."""

    decoder: Decoder  # type: ignore[assignment]  # ours has what h2 uses of it: the two limits
    encoder: Encoder  # type: ignore[assignment]  # likewise: header_table_size

    def __init__(self, limits: EngineLimits) -> None:
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.decoder = Decoder(limits)
        self.encoder = Encoder()
        self.frames = Frames(self.decoder.block_bytes)
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            },
        )
        self._acknowledged = False
        self.initiate_connection()
        self.window = WindowManager(DEFAULT_WINDOW)
        """The connection's receive window."""
        self.window_raise = max(0, limits.connection_window - DEFAULT_WINDOW)
        """What the first WINDOW_UPDATE of the connection is to add."""
        if self.window_raise:
            self.window.window_opened(self.window_raise)

    @property
    def stream_window(self) -> int:
        """The receive window of a new stream. Until the client acknowledged our SETTINGS it may still use the default."""
        size = self.local_settings.initial_window_size
        return size if self._acknowledged else max(size, DEFAULT_WINDOW)

    def settings(self, frame: SettingsFrame) -> None:
        """Apply the client's SETTINGS, or its acknowledgement of ours; the caller acknowledges. Raises h2's ProtocolError.

        Unknown settings are dropped first: h2 would keep each of the 65,536 that there are.
        """
        if "ACK" in frame.flags:
            size = self.local_settings.initial_window_size
            if not self._acknowledged and size < DEFAULT_WINDOW:
                for stream in self.streams.values():
                    stream._inbound_flow_control_change_from_settings(size - DEFAULT_WINDOW)  # noqa: SLF001 - h2's own hook
            self._acknowledged = True
            return
        frame.settings = {code: value for code, value in frame.settings.items() if code in _KNOWN_SETTINGS}
        self._receive_settings_frame(frame)

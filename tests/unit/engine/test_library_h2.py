"""What our HTTP/2 engine touches inside h2, hpack and hyperframe: an upgrade that moves one of these fails here first, by name."""

import inspect
from collections import deque

import h2
import pytest
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.windows import WindowManager
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable
from hyperframe import frame as frames
from hyperframe.exceptions import InvalidDataError

from proxy.engine.h2_hpack import Decoder, Encoder
from proxy.engine.h2_output import Stream
from proxy.engine.h2_receive import DISPATCH
from proxy.engine.h2_wire import Frames, Wire
from proxy.engine.seam import EngineLimits


def test_the_version_that_the_engine_was_written_against():
    assert h2.__version__.split(".")[0] == "4"
    assert tuple(map(int, h2.__version__.split(".")[:2])) >= (4, 4)


def test_the_frame_buffer():
    buffer = FrameBuffer(server=True)
    assert vars(buffer).keys() >= {"_data", "_preamble_len", "_headers_buffer", "max_frame_size"}
    assert isinstance(buffer._data, bytearray)
    assert list(inspect.signature(FrameBuffer._update_header_buffer).parameters) == ["self", "f"]
    assert iter(buffer) is buffer  # so that the loop may go on after a fault of one stream


def test_the_frame_buffer_leaves_a_frame_in_place_when_its_body_is_invalid():
    buffer = Frames(1000)
    frame = b"\0\0\4\x08\0\0\0\0\3\0\0\0\0"
    buffer.add_data(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame)
    with pytest.raises(ProtocolError) as caught:
        next(buffer)
    assert isinstance(caught.value.__cause__, InvalidDataError)
    assert bytes(buffer._data) == frame
    assert buffer.skip_zero_increment(caught.value) == 3
    assert bytes(buffer._data) == b""


def test_the_frame_buffer_still_waits_for_the_whole_of_a_frame_that_is_too_long():
    buffer = FrameBuffer()
    buffer.max_frame_size = 16384
    buffer.add_data(b"\xff\xff\xff\0\0\0\0\0\1")
    assert list(buffer) == []  # when h2 looks by itself, Frames.__next__ can go


def test_what_settings_set_on_the_connection_and_its_streams():
    wire = Wire(EngineLimits())
    stream = wire.streams[1] = Stream(1, 65535, remote_ended=False, bodyless=False, expected=None)
    settings = {
        SettingCodes.INITIAL_WINDOW_SIZE: 70000,
        SettingCodes.MAX_FRAME_SIZE: 20000,
        SettingCodes.HEADER_TABLE_SIZE: 0,
    }
    wire.settings(frames.SettingsFrame(0, settings=settings))
    assert wire.remote_settings.initial_window_size == 70000
    assert (stream.outbound_flow_control_window, stream.max_outbound_frame_size) == (70000, 20000)
    assert wire.max_outbound_frame_size == 20000
    assert wire.encoder.header_table_size == 0


def test_our_codecs_have_what_the_connection_uses():
    wire = Wire(EngineLimits())
    assert isinstance(wire.encoder, Encoder)
    assert isinstance(wire.decoder, Decoder)
    source = inspect.getsource(H2Connection)
    for used in ("self.decoder.max_header_list_size", "self.decoder.max_allowed_table_size", "self.encoder.header_table_size"):
        assert used in source
    assert {name for name in ("decoder", "encoder") if f"self.{name} = " in source} == {"decoder", "encoder"}


def test_unknown_settings_would_be_kept_by_the_library_and_are_not_by_us():
    wire = Wire(EngineLimits())
    before = len(wire.remote_settings)
    wire.settings(frames.SettingsFrame(0, settings=dict.fromkeys(range(100, 2000), 1)))
    assert len(wire.remote_settings) == before


def test_settings_and_their_initial_values():
    settings = Settings(client=False, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: 5, SettingCodes.ENABLE_PUSH: 0})
    assert settings.initial_window_size == 5
    assert settings.enable_push == 0


def test_the_window_manager():
    window = WindowManager(100)
    window.window_consumed(60)
    assert (window.current_window_size, window.max_window_size) == (40, 100)
    assert window.process_bytes(10) == 0
    assert window.process_bytes(50) == 60
    window.window_opened(-150)
    assert window.current_window_size == -50


def test_hpack():
    assert (decode_integer(b"\xff\x00", 7), decode_huffman(bytes.fromhex("a8eb10649cbf"))) == ((127, 2), b"no-cache")
    table = HeaderTable()
    assert len(HeaderTable.STATIC_TABLE) == 61
    assert isinstance(table.dynamic_entries, deque)
    table.add(b"a", b"b")
    assert table.dynamic_entries[0] == (b"a", b"b")
    table.maxsize = 0
    assert not table.dynamic_entries


def test_every_frame_type_that_hyperframe_makes_has_its_handler():
    assert set(DISPATCH) == {*frames.FRAMES.values(), frames.ExtensionFrame}

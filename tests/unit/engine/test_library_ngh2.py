"""What our engine takes for granted of ngh2 and does not ask again: an upgrade that moves one of these fails here first, by name."""

import ngh2
import pytest
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from proxy.engine import h2_ngh2
from proxy.engine.h2_ngh2_receive import DISPATCH
from proxy.engine.h2_ngh2_setup import connect
from proxy.engine.seam import EngineLimits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]


def opened(*frames):
    library, _ = connect(EngineLimits())
    library.receive_data(PREFACE + b"".join(frame.serialize() for frame in frames))
    library.events()
    return library


def request(stream, fields=GET, *, end=True):
    return HeadersFrame(stream, Encoder().encode(fields), flags=["END_HEADERS", *(["END_STREAM"] if end else [])])


def test_the_version_that_the_engine_was_written_against():
    assert ngh2.__version__ == "0.3.0"
    assert h2_ngh2.LIBRARIES == {"libnghttp2": "1.70.0"}  # which that version carries


def test_our_greeting_differs_from_the_library_s_in_the_limit_of_streams_only():
    limits = EngineLimits()
    _, greeting = connect(limits)
    plain = ngh2.Connection(ngh2.Role.SERVER)
    plain.initiate_connection({2: 0, 3: limits.streams, 4: limits.stream_window, 6: limits.header_bytes, 9: 1})
    plain.set_local_window_size(limits.connection_window)
    assert greeting == plain.data_to_send()


def test_every_event_that_a_server_can_get_has_its_handler():
    others = {
        ngh2.ResponseReceived,
        ngh2.InformationalResponseReceived,
        ngh2.PushedStreamReceived,
        ngh2.AltSvcReceived,
        ngh2.OriginReceived,
    }
    assert set(ngh2.Event.__subclasses__()) == {*DISPATCH, *others}


def test_a_refused_head_is_told_only_with_what_is_sent():
    library = opened(request(1, [*GET, (b"te", b"gzip")]))
    assert library.events() == []
    assert b"\0\0\4\3\0\0\0\0\1\0\0\0\1" in library.data_to_send()
    (event,) = library.events()
    assert (event.stream_id, event.error_code) == (1, ngh2.ErrorCode.PROTOCOL_ERROR)


def test_a_reset_overtakes_a_head_that_was_not_taken():
    library = opened(request(1))
    library.send_response(1, [(b":status", b"200")], end_stream=True)
    library.reset_stream(1, 0)
    assert library.data_to_send().endswith(b"\0\0\4\3\0\0\0\0\1\0\0\0\0")


def test_ping_overtakes_goaway():
    library = opened()
    library.send_shutdown_notice()
    library.ping(b"12345678")
    assert library.data_to_send().endswith(b"\x7f\xff\xff\xff\0\0\0\0")


def test_credit_may_be_returned_for_a_stream_that_is_gone_but_not_twice():
    library = opened(request(1, [(b":method", b"POST"), *GET[1:]], end=False), DataFrame(1, b"abc"))
    library.reset_stream(1, 8)
    library.data_to_send()
    library.acknowledge_received_data(3, 1)
    with pytest.raises(ValueError, match="exceeds"):
        library.acknowledge_received_data(1, 1)


def test_the_queue_is_counted_until_it_is_framed():
    library = opened(request(1))
    library.send_response(1, [(b":status", b"200")])
    library.send_data(1, b"x" * 100_000, end_stream=True)
    assert library.queued_body_size(1) == library.queued_body_size() == 100_000
    library.data_to_send()
    assert library.queued_body_size(1) == 100_000 - 65_535

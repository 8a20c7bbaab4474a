"""Fails loudly when an upgrade of aioquic changes what ``engine/quic`` leans on: read the function again, then renew its digest here."""

import hashlib
import importlib.metadata
import inspect

import pytest
from aioquic import tls
from aioquic.quic import connection, packet_builder, recovery, stream

from proxy.engine.quic.connection import CHARGED, Transport
from tests.sim.simulator import World

OVERRIDDEN_OR_REPLACED = {
    "connection.QuicConnection.__init__": "7dd6d0098707",
    "connection.QuicConnection.datagrams_to_send": "b454fbe504f6",
    "connection.QuicConnection.get_timer": "5b0f7b76b6e2",
    "connection.QuicConnection.handle_timer": "799056755474",
    "connection.QuicConnection.receive_datagram": "bd271a4e1528",
    "connection.QuicConnection._initialize": "a8b36c955608",
    "connection.QuicConnection._update_traffic_key": "6df22fa6196a",
    "connection.QuicConnection._push_crypto_data": "db5788cf79fe",
    "connection.QuicConnection._write_crypto_frame": "166359da837f",
    "connection.QuicConnection._parse_transport_parameters": "a4544c1ddfe0",
    "connection.QuicConnection._replenish_connection_ids": "c5fe81d93f53",
    "connection.QuicConnection._write_new_connection_id_frame": "eb4560a5c2a3",
    "connection.QuicConnection._on_new_connection_id_delivery": "c005ef0490aa",
    "connection.QuicConnection._handle_retire_connection_id_frame": "6111eb5235e8",
    "connection.QuicConnection._get_or_create_stream": "b14ac93c1d42",
    "connection.QuicConnection._get_or_create_stream_for_send": "c4bd5bf1a3cc",
    "connection.QuicConnection._stream_is_discarded": "8bce7dbdd94f",
    "connection.QuicConnection._handle_crypto_frame": "0043a24dcc62",
    "connection.QuicConnection._handle_stream_frame": "b1b6617042cd",
    "connection.QuicConnection._handle_reset_stream_frame": "262fe4ef67c9",
    "connection.QuicConnection._handle_stop_sending_frame": "743ae0c0037e",
    "connection.QuicConnection._handle_max_data_frame": "966c3b91f0cc",
    "connection.QuicConnection._handle_max_stream_data_frame": "88ad7f2210d2",
    "connection.QuicConnection._payload_received": "6e4f91955c58",
    "connection.QuicConnection._write_application": "6909c95ad99a",
    "connection.QuicConnection._write_connection_limits": "45b2f2f4e043",
    "connection.QuicConnection._write_stream_limits": "e413b59fc54b",
    "connection.QuicConnection._write_stream_frame": "8d0371cdffa7",
    "connection.QuicConnection._write_reset_stream_frame": "47580a1bfd01",
    "connection.QuicConnection._write_stop_sending_frame": "4af010731d86",
    "connection.QuicConnection._close_end": "f1995a791593",
    "connection.QuicConnection.close": "222518cfada9",
    "packet_builder.QuicPacketBuilder.start_frame": "4c8549672079",
    "packet_builder.QuicPacketBuilder.start_packet": "901088ac24e0",
    "recovery.QuicPacketPacer": "ecbe209303da",
    "stream.QuicStreamReceiver": "ad2daa503e48",
    "stream.QuicStreamSender": "1332606b7b41",
    "tls.Context.handle_message": "6592c2cfd0f1",
    "tls.Context._server_handle_hello": "8b7fde4283b4",
    "tls.Context._server_handle_certificate": "6c25b64209b4",
    "tls.Context._server_handle_finished": "ad6c190cd054",
    "tls.Context._build_session_ticket": "76e0504051bf",
    "tls.SessionTicket": "2bdebd4f84f0",
    "tls.NewSessionTicket": "9cca84ee8b02",
    "tls.pull_client_hello": "c8b6883090fa",
    "tls.push_new_session_ticket": "dc90f8295726",
    "tls.verify_certificate": "55039b91e7e1",
}
"""Functions of aioquic 1.7.2 that are overridden, replaced, or whose private state is read, by the digest of their source."""

ATTRIBUTES = {
    "connection": """_close_at _close_event _configuration _control_absent _crypto_buffers _crypto_streams _cryptos _events
        _handshake_complete _handshake_done_pending _host_cid_seq _host_cids _local_initial_source_connection_id
        _local_max_data _local_max_streams_bidi
        _local_max_streams_uni _logger _loss _max_datagram_size _network_paths _packet_number _ping_pending _probe_pending
        _remote_active_connection_id_limit _remote_max_data _remote_max_data_used _retire_connection_ids _spaces _state _streams
        _streams_queue host_cid""",
    "receiver": "_buffer _final_size _ranges highest_offset is_finished stop_pending",
    "sender": "_buffer _buffer_fin _buffer_stop _pending _pending_eof _reset_error_code buffer_is_empty highest_offset reset_pending",
    "recovery": "_logger _pacer _rtt_smoothed bytes_in_flight congestion_window",
}
"""Private and other attributes that are touched."""


def find(name: str) -> object:
    found: object = {"connection": connection, "packet_builder": packet_builder, "recovery": recovery, "stream": stream, "tls": tls}[
        name.partition(".")[0]
    ]
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def test_the_version_is_one_that_was_read() -> None:
    assert importlib.metadata.version("aioquic").startswith("1.7.")


@pytest.mark.parametrize("name", OVERRIDDEN_OR_REPLACED)
def test_nothing_that_we_lean_on_has_changed(name: str) -> None:
    source = inspect.getsource(find(name))  # type: ignore[arg-type]  # functions and classes all
    assert hashlib.blake2b(source.encode(), digest_size=6).hexdigest() == OVERRIDDEN_OR_REPLACED[name], f"aioquic's {name} has changed"


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_that_we_touch_exist(kind: str) -> None:
    world = World()
    client = world.connect()
    assert world.run(lambda: client.ready)
    quic = client.quic  # a plain connection of the library
    objects = {
        "connection": quic,
        "receiver": stream.QuicStream(0).receiver,
        "sender": stream.QuicStream(0).sender,
        "recovery": quic._loss,
    }
    missing = [name for name in ATTRIBUTES[kind].split() if not hasattr(objects[kind], name)]
    assert missing == (["_control_absent"] if kind == "connection" else [])  # which shows that the test can fail


def test_frame_handlers_are_looked_up_on_the_instance() -> None:
    """Overrides of ``_handle_*_frame`` would be dead code otherwise; their number says that no new frame slipped past the budget."""
    handlers = {name for name in dir(connection.QuicConnection) if name.startswith("_handle_") and name.endswith("_frame")}
    ours = {name for name in vars(Transport) if name in handlers}
    assert {f"_handle_{name}_frame" for name in CHARGED} <= ours
    assert handlers - ours == {
        "_handle_connection_close_frame",  # ends it
        "_handle_datagram_frame",  # refused by the library, as none are offered
        "_handle_handshake_done_frame",  # likewise, from a client
        "_handle_new_token_frame",  # likewise
        "_handle_padding_frame",  # one for a whole run of bytes
    }

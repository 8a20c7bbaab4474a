"""How an HTTP/2 connection of the ngh2 library is made: the library's own limits and our SETTINGS, from ``EngineLimits``.

Knows the options of the library and the first bytes of a connection. Knows nothing of what follows.
"""

from functools import lru_cache
from struct import pack

from ngh2 import Configuration, Connection, Role

from proxy.engine.h2_abuse import CONTROL_BURST
from proxy.engine.seam import EngineLimits

LIST_FACTOR = 4
"""A header section of up to so many times ``header_bytes`` and ``header_count`` is still read, and refused on its own stream; the
library knows no other answer to a larger one than the end of the connection (a bomb of HPACK references costs 1 MB without this)."""

CONTINUATIONS = 16
"""CONTINUATION frames of one header block, as with the other engine."""

SETTINGS_ENTRIES = 128
"""Entries of one SETTINGS frame: there are nine that anybody knows."""

ACKNOWLEDGEMENTS = 1000
"""Answers to PING and SETTINGS that may wait for a client that does not read (CVE-2019-9512, 9515): the library's own default."""

RESPONSE_HEAD_BYTES = 256 * 1024
"""Largest response head, in the library's estimate before HPACK. A backend's may have 64 KiB (``validate.RESPONSE_LIMITS``)."""

STREAMS_SLACK = 100
"""The library is told a higher limit of streams than the client, since it answers one request too many with the end of the
connection. Within the slack we refuse the request alone."""

_BACKSTOP = (10 * CONTROL_BURST, CONTROL_BURST)
"""Burst and rate of the library's own budgets for resets and oddities. They run on its own clock and count less than ours does, so
they stand far above ours and are not met before."""

_HEADER_TABLE_SIZE, _ENABLE_PUSH, _STREAMS, _WINDOW, _LIST_BYTES, _NO_OLD_PRIORITIES = 1, 2, 3, 4, 6, 9
_DEFAULT_WINDOW = 65535


def connect(limits: EngineLimits) -> tuple[Connection, bytes]:
    """A connection that has said its SETTINGS, and the bytes that say them."""
    configuration, settings, greeting = _prepared(limits)
    connection = Connection(Role.SERVER, configuration)
    connection.initiate_connection(settings)
    if limits.connection_window > _DEFAULT_WINDOW:
        connection.set_local_window_size(limits.connection_window)
    connection.data_to_send()  # said in our own words
    return connection, greeting


@lru_cache(maxsize=8)
def _prepared(limits: EngineLimits) -> tuple[Configuration, dict[int, int], bytes]:
    settings = {
        _ENABLE_PUSH: 0,
        _STREAMS: limits.streams + STREAMS_SLACK,
        _WINDOW: limits.stream_window,
        _LIST_BYTES: limits.header_bytes,
        _NO_OLD_PRIORITIES: 1,  # RFC 9218, section 2.1
    }
    told = settings | {_STREAMS: limits.streams}
    payload = b"".join(pack(">HL", *entry) for entry in told.items())
    greeting = pack(">BHBBL", 0, len(payload), 4, 0, 0) + payload
    if limits.connection_window > _DEFAULT_WINDOW:
        greeting += pack(">BHBBLL", 0, 4, 8, 0, 0, limits.connection_window - _DEFAULT_WINDOW)
    configuration = Configuration(
        auto_window_update=False,
        max_send_header_block_length=RESPONSE_HEAD_BYTES,
        max_outbound_ack=ACKNOWLEDGEMENTS,
        max_settings=SETTINGS_ENTRIES,
        stream_reset_rate_limit=_BACKSTOP,
        glitch_rate_limit=_BACKSTOP,
        max_continuations=CONTINUATIONS,
        max_inbound_header_list_size=limits.header_bytes * LIST_FACTOR,
        max_inbound_header_count=limits.header_count * LIST_FACTOR,
    )
    return configuration, settings, greeting

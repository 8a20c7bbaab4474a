"""QUIC (RFC 9000, 9001, 9002) on aioquic 1.7, for the listener side.

``endpoint`` sorts datagrams by connection ID and owns the timers; ``ids`` mints connection IDs; ``packets`` reads and writes what
belongs to no connection. ``connection`` is the transport of one client, with ``sending`` its send loop, ``flow`` its receive windows
and ``abuse`` its budgets. ``tls`` chooses the certificate by SNI. HTTP/3 stands on it in ``engine/h3.py``.

All touches of aioquic's private parts are in ``connection``, ``sending``, ``flow`` and ``tls``;
tests/unit/engine/test_library_aioquic.py notices when an upgrade moves one of them.
"""

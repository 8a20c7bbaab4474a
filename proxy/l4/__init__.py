"""The tier in front of instances: passes datagrams and TCP connections on and terminates nothing.

``routing`` decides, for QUIC, which instance gets a datagram, by ``tables`` of flows and what ``header`` reads: all three are pure.
``udp`` and ``tcp`` have the sockets. See docs/design/2026-11-23-many-machines.md.
"""

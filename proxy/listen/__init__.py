"""Sockets in: accepts connections, reads the ClientHello, does TLS, drives an engine and hands its events to exchanges.

``tcp.py`` and ``udp.py`` own the sockets and share ``client.py``; ``peek.py``, ``tls.py``, ``proxy_protocol.py`` and ``limits.py`` are what
happens at accept.
"""

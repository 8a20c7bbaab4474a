"""qproxy: a reverse proxy and load balancer for HTTP/1.1, HTTP/2 and HTTP/3.

The life of a request, and where to read it:

1. ``listen/`` accepts the connection: ``tcp`` and ``udp`` own the sockets, ``peek`` reads the ClientHello, ``tls`` picks the
   certificate by SNI.
2. ``engine/`` turns bytes into events (``engine/events.py``), purely: ``h1``, ``h2``, ``quic`` with ``h3``; ``validate`` refuses
   what is malformed, by one set of rules for all versions.
3. ``exchange.py`` decides: site, route, policies, pool, backend, retry, answer.
4. ``upstream/`` carries the request to the backend and brings the answer back; ``pipe.py`` moves the body bytes.
5. ``control/`` watches from the side: probes, certificates, metrics, logs, the admin API.

Everything a request sees of the configuration is one frozen ``snapshot.Snapshot``; ``config/`` makes it. ``process/worker.py`` wires the
parts of the path, ``process/controller.py`` those beside it, and ``app.py`` joins both.
"""

__version__ = "0.1.0"

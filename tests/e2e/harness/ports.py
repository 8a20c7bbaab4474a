"""Free ports on loopback, for programs that must be told theirs."""

import os
import random
import socket
from collections.abc import Iterator

LOW, HIGH = 10240, 32000  # under Linux's ephemeral range, so that no client socket takes one meanwhile


def _candidates() -> Iterator[int]:
    """The ports of this test process, in turn: a port that was handed out may not be bound yet, so none comes twice.

    Each of pytest-xdist's processes has a share of its own. The beginning is by chance, for a second run beside this one.
    """
    shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(LOW + share, HIGH, shares)
    at = random.randrange(len(ports))
    while True:
        yield ports[at]
        at = (at + 1) % len(ports)


_next = _candidates()


def free_port() -> int:
    """A port that is free on 127.0.0.1 for TCP and UDP, and that this run has not handed out before."""
    for _ in range(200):
        port = next(_next)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = "no free port found"
    raise RuntimeError(msg)

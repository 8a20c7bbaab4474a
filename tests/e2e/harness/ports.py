"""Free ports on loopback, for programs that must be told theirs."""

import random
import socket

LOW, HIGH = 10240, 32000  # under Linux's ephemeral range, so that no client socket takes one meanwhile


def free_port() -> int:
    """A port that is free on 127.0.0.1 for TCP and UDP."""
    for _ in range(200):
        port = random.randrange(LOW, HIGH)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = "no free port found"
    raise RuntimeError(msg)

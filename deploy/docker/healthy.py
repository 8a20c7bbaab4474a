#!/usr/bin/env -S python3 -ISE
"""Whether the qproxy in this container serves: exit code 0 where its admin API answers /health with 200. For HEALTHCHECK.

QPROXY_ADMIN is the address of the admin API, HOST:PORT; default 127.0.0.1:9090. Imports little: it runs every few seconds.
"""

import os
import socket
import sys


def status(address: str) -> str:
    """The status line of the answer. Raises OSError where nobody answers, ValueError for what is no address."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return connection.recv(4096).decode("latin-1").partition("\r\n")[0]


def main() -> None:
    """Print the answer, or why there is none."""
    address = os.environ.get("QPROXY_ADMIN", "127.0.0.1:9090")
    try:
        line = status(address)
    except (OSError, ValueError) as error:
        sys.exit(f"the admin API at {address} does not answer: {error}")
    sys.stdout.write(f"{line}\n")
    sys.exit(line.split(" ")[1:2] != ["200"])


if __name__ == "__main__":
    main()

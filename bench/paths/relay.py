"""A UDP relay that is a path: a bottleneck with a queue, a delay, and losses by a seed. One client at a time.

    python -m bench.paths.relay --to PORT --rate BYTES --delay SECONDS --queue BYTES --loss SHARE --seed N

Says its port, relays until SIGTERM, then tells what it saw as JSON. When a datagram leaves is computed and not slept for: it begins its
transmission when it came or when the one before it was through, whatever came later, so that a late turn of this program delays its
delivery and changes neither the rate nor the queue. By how much deliveries were late is told (``late_*``).
"""

import argparse
import ctypes
import json
import random
import select
import signal
import socket
import sys
import time
from array import array
from collections import deque
from contextlib import suppress
from typing import Any

from bench.figures import quantile

BUFFER = 16 * 1024 * 1024
"""Of each socket: what is dropped is dropped by the path."""
SO_SNDBUFFORCE, SO_RCVBUFFORCE, PR_SET_TIMERSLACK = 32, 33, 29
READS = 64
"""Datagrams of one direction before it is the other's turn."""

Due = tuple[float, bytes]


class Bottleneck:
    """The way to the client, by computed times. Pure."""

    def __init__(self, rate: float, queue: int, loss: float, seed: int) -> None:
        self._rate = rate
        self._queue = queue
        self._loss = loss
        self._chances = random.Random(seed)
        self._free_at = 0.0
        self.offered = self.offered_bytes = self.overflowed = self.lost = 0
        self.waits = array("d")
        """Seconds that each datagram waited in the queue."""

    def take(self, size: int, now: float) -> float | None:
        """When a datagram of *size* bytes that comes *now* is through; None: it is lost."""
        self.offered += 1
        self.offered_bytes += size
        wait = max(0.0, self._free_at - now)
        if round(wait * self._rate) + size > self._queue:
            self.overflowed += 1
            return None
        self.waits.append(wait)
        self._free_at = now + wait + size / self._rate
        if self._chances.random() < self._loss:
            self.lost += 1
            return None
        return self._free_at


class Relay:
    """Both ways between one client and the server."""

    def __init__(self, server: int, bottleneck: Bottleneck, delay: float) -> None:
        self._bottleneck = bottleneck
        self._delay = delay
        self._inside, self._outside = _socket(), _socket()
        self._inside.bind(("127.0.0.1", 0))
        self._outside.bind(("127.0.0.1", 0))
        self._outside.connect(("127.0.0.1", server))
        self.port: int = self._inside.getsockname()[1]
        self._client: tuple[str, int] | None = None
        self._up: deque[Due] = deque()
        self._down: deque[Due] = deque()
        self._late = array("d")
        self.stopped = False

    def run(self) -> None:
        """Until ``stopped``."""
        clock, inside, outside = time.perf_counter, self._inside, self._outside
        sockets = [inside, outside]
        while not self.stopped:
            due = min((way[0][0] for way in (self._up, self._down) if way), default=clock() + 0.1)
            with suppress(InterruptedError):
                select.select(sockets, [], [], max(0.0, due - clock()))
            self._from_server()
            self._from_client()
            self._deliver()

    def _from_client(self) -> None:
        for _ in range(READS):
            try:
                data, self._client = self._inside.recvfrom(65536)
            except OSError:
                return
            self._up.append((time.perf_counter() + self._delay, data))

    def _from_server(self) -> None:
        for _ in range(READS):
            try:
                data = self._outside.recv(65536)
            except OSError:
                return
            through = self._bottleneck.take(len(data), time.perf_counter())
            if through is not None:
                self._down.append((through + self._delay, data))

    def _deliver(self) -> None:
        now = time.perf_counter()
        while self._up and self._up[0][0] <= now:
            due, data = self._up.popleft()
            with suppress(OSError):
                self._outside.send(data)
        while self._down and self._down[0][0] <= now and self._client is not None:
            due, data = self._down.popleft()
            with suppress(OSError):
                self._inside.sendto(data, self._client)
            self._late.append(now - due)

    def told(self) -> dict[str, Any]:
        """What it saw. Times in seconds."""
        path, waits, late = self._bottleneck, sorted(self._bottleneck.waits), sorted(self._late)
        return {
            "offered": path.offered,
            "offered_bytes": path.offered_bytes,
            "overflowed": path.overflowed,
            "lost": path.lost,
            "queue_mean": sum(waits) / len(waits) if waits else 0.0,
            "queue_p95": quantile(waits, 0.95) if waits else 0.0,
            "late_mean": sum(late) / len(late) if late else 0.0,
            "late_p99": quantile(late, 0.99) if late else 0.0,
        }


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
    sock.setblocking(False)
    return sock


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="relay")
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--queue", type=int, required=True)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    relay = Relay(options.to, Bottleneck(options.rate, options.queue, options.loss, options.seed), options.delay)

    def stop(*_: object) -> None:
        relay.stopped = True

    signal.signal(signal.SIGTERM, stop)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000)  # nanoseconds, in place of 50 microseconds
    sys.stdout.write(f"{relay.port}\n")
    sys.stdout.flush()
    relay.run()
    sys.stdout.write(json.dumps(relay.told()) + "\n")


if __name__ == "__main__":
    main()

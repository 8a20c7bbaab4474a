"""A word to systemd (sd_notify), where it started us. Standard library only."""

import contextlib
import os
import socket
import time

READY, STOPPING, WATCHDOG = "READY=1", "STOPPING=1", "WATCHDOG=1"

PATIENCE = 1.0
"""Seconds to wait for one who does not take what he is told; with a sign of life there is another one soon, so for that none."""


def notify(words: str) -> None:
    """Send *words*; nothing happens where nobody listens. Never waits for long: a queue that is full loses them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.0 if words == WATCHDOG else PATIENCE)
        sock.sendto(words.encode(), "\0" + address[1:] if address.startswith("@") else address)


def reloading() -> str:
    """That a reload has begun; ``READY`` ends it."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def watchdog_interval() -> float:
    """Seconds between signs of life that systemd wants; 0: it wants none of us."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isdigit() else 0.0

"""The two ends of a balancer: clients that send as fast as they can, and an instance that takes it, or sends answers back.

Each is a process of its own. They speak to the bench by lines on standard output, and begin what they do with a line on standard input.
"""

import argparse
import json
import os
import socket
import struct
import sys
import time

from balancer.quic_lb import Codec, Layout
from bench.tier.common import EPOCH, KEYS, SERVER_ID
from proxy.cluster.envelope import ANSWER, DATAGRAM, OVERHEAD, Opener, Sealer
from proxy.keys import Keyring, Purpose, config_id, parse
from proxy.l4.relay import segment_of
from proxy.listen.bind import SOL_UDP, UDP_GRO, UDP_SEGMENT

BUFFER = 8 * 1024 * 1024
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("send", "take", "answer", "receive"))
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1: where to send, or to listen")
    parser.add_argument("--size", type=int, default=1200)
    parser.add_argument("--count", type=int, default=0, help="answers in all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--envelopes", action="store_true")
    options = parser.parse_args()
    {"send": send, "take": take, "answer": answer, "receive": receive}[options.end](options)


def keyring() -> Keyring:
    return Keyring(parse(KEYS, "bench"), b"")


def udp(port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, {SO_RCVBUFFORCE: socket.SO_RCVBUF, SO_SNDBUFFORCE: socket.SO_SNDBUF}[option], BUFFER)
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def datagram(size: int, client: int) -> bytes:
    """A short-header packet whose connection ID names the instance."""
    keys = keyring()
    codec = Codec(Layout(config_id(EPOCH), len(SERVER_ID), 8, key=keys.cid_key(EPOCH)))
    return (b"\x43" + codec.encode(SERVER_ID, client.to_bytes(8))).ljust(size, b".")


def said(**what: object) -> None:
    print(json.dumps(what), flush=True)


def send(options: argparse.Namespace) -> None:
    """Clients that flood; told to stop by the time."""
    socks = [udp() for _ in range(options.clients)]
    batches = [[datagram(options.size, number)] * BATCH for number in range(options.clients)]
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", options.size))]
    sent, until = 0, time.monotonic() + options.seconds
    while time.monotonic() < until:
        for sock, batch in zip(socks, batches, strict=True):
            sock.sendmsg(batch, control, 0, ("127.0.0.1", options.port))
            sent += BATCH
    said(sent=sent)


def take(options: argparse.Namespace) -> None:
    """An instance that counts what comes, until nothing came for half a second."""
    sock = udp(options.port)
    said(port=sock.getsockname()[1])
    buffer = memoryview(bytearray(65536))
    datagrams = size = 0
    extra = OVERHEAD if options.envelopes else 0
    opener = Opener({EPOCH: keyring().derive(Purpose.ENVELOPE, EPOCH)})
    checked = not options.envelopes
    first = last = 0.0
    while True:
        got, control, _, _ = sock.recvmsg_into([buffer], 64)
        segment = segment_of(control) or got
        if not checked:
            envelope = opener.open(bytes(buffer[:segment]), time.time())
            if envelope is None or envelope.kind != DATAGRAM:
                continue  # HELLO
            checked = True
        now = time.monotonic()
        first = first or now
        last = now
        for at in range(0, got, segment):
            inside = min(segment, got - at) - extra
            if inside < options.size:
                continue  # HELLO
            datagrams += inside // options.size
            size += inside
        sock.settimeout(0.5)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            break
    said(datagrams=datagrams, bytes=size, seconds=last - first)


def answer(options: argparse.Namespace) -> None:
    """An instance that sends *count* answers to whoever speaks to it."""
    sock = udp(options.port)
    said(port=sock.getsockname()[1])
    opener = Opener({EPOCH: keyring().derive(Purpose.ENVELOPE, EPOCH)})
    sealer = Sealer(EPOCH, keyring().derive(Purpose.ENVELOPE, EPOCH), os.urandom)
    payload = b"\x43" * options.size
    data, source = sock.recvfrom(65536)
    size = options.size
    batches = [[payload] * BATCH] * (options.count // BATCH)
    if options.envelopes:
        while (envelope := opener.open(data, time.time())) is None or envelope.kind != DATAGRAM:
            data, source = sock.recvfrom(65536)
        to = {"client": envelope.client, "local": envelope.local, "port": envelope.port}
        now = time.time()
        batches = [[sealer.seal(ANSWER, payload, now, **to) for _ in range(BATCH)] for _ in range(options.count // BATCH)]
        size += OVERHEAD
    said(ready=True)
    sys.stdin.readline()
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    for batch in batches:
        sock.sendmsg(batch, control, 0, source)
    said(sent=len(batches) * BATCH)
    sys.stdin.readline()


def receive(options: argparse.Namespace) -> None:
    """A client that speaks once and counts what comes back."""
    sock = udp()
    sock.sendto(datagram(options.size, 1), ("127.0.0.1", options.port))
    buffer = memoryview(bytearray(65536))
    datagrams = size = 0
    first = last = 0.0
    sock.settimeout(30)
    while True:
        try:
            got, control, _, _ = sock.recvmsg_into([buffer], 64)
        except TimeoutError:
            break
        segment = segment_of(control) or got
        datagrams += -(-got // segment)
        size += got
        last = time.monotonic()
        first = first or last
        sock.settimeout(1.0)
    said(datagrams=datagrams, bytes=size, seconds=last - first)


if __name__ == "__main__":
    main()

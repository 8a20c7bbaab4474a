"""TCP through a balancer: one large download, and many short connections, with an instance that reads past a PROXY protocol header."""

import argparse
import asyncio
import json
import socket
import sys
import threading
import time

import uvloop

PIECE = b"." * (1 << 20)
HELLO = b"GET / HTTP/1.1\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("serve", "download", "connect"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--parallel", type=int, default=16)
    options = parser.parse_args()
    if options.end == "download":
        download(options)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options) if options.end == "serve" else connect(options))


def said(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Served(asyncio.Protocol):
    """Sends as many bytes as were asked for, once the request is there, whatever stands before it."""

    size = 0

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.data.endswith(b"\r\n\r\n"):
            return
        if not self.size:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # type: ignore[attr-defined]
            self.transport.close()
            return
        sock = self.transport.get_extra_info("socket").dup()
        threading.Thread(target=self.flood, args=(sock,)).start()

    def flood(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        left = self.size
        with sock:
            while left > 0:
                left -= sock.send(PIECE[: min(left, len(PIECE))])
            sock.shutdown(socket.SHUT_WR)


async def serve(options: argparse.Namespace) -> None:
    Served.size = options.bytes
    server = await asyncio.get_running_loop().create_server(Served, "127.0.0.1", options.port, backlog=4096)
    said(port=server.sockets[0].getsockname()[1])
    await asyncio.to_thread(sys.stdin.readline)


def download(options: argparse.Namespace) -> None:
    with socket.create_connection(("127.0.0.1", options.port)) as sock:
        sock.sendall(HELLO)
        buffer, size, began = bytearray(1 << 20), 0, time.monotonic()
        while got := sock.recv_into(buffer):
            size += got
        said(bytes=size, seconds=time.monotonic() - began)


async def connect(options: argparse.Namespace) -> None:
    done = 0
    until = time.monotonic() + options.seconds

    async def one() -> None:
        nonlocal done
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
            writer.write(HELLO)
            assert await reader.read()
            writer.close()
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(options.parallel)))
    said(connections=done, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()

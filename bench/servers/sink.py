"""A backend that takes uploads and nothing else: 200 with the number of bytes for a body of 1 MiB, 400 for any other.

Run as ``python -m bench.servers.sink PORT``. Its buffer is shared by all connections, so that taking a body costs little.
"""

import asyncio
import sys

import httptools
import uvloop

EXPECTED = 1024 * 1024
BUFFER = memoryview(bytearray(256 * 1024))


class Sink(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def get_buffer(self, hint: int) -> memoryview:
        del hint
        return BUFFER

    def buffer_updated(self, size: int) -> None:
        self.parser.feed_data(BUFFER[:size])

    def on_body(self, body: bytes) -> None:
        self.size += len(body)

    def on_message_complete(self) -> None:
        status = b"200 OK" if self.size == EXPECTED else b"400 Bad Request"
        answer = b"%d\n" % self.size
        self.size = 0
        self.transport.write(b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))

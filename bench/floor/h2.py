"""The floor of HTTP/2: uvloop's TLS and h2 with its header validation off, nothing else. GET only, no flow control towards the backend."""

import asyncio
from collections import deque

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamReset, WindowUpdated

from bench.floor.common import arguments, serve, tls
from bench.floor.upstream import Pool, get


class Server(asyncio.Protocol):
    pool: Pool
    configuration = H2Configuration(
        client_side=False,
        header_encoding=None,
        validate_inbound_headers=False,
        normalize_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )

    def __init__(self) -> None:
        self.http = H2Connection(self.configuration)
        self.waiting: dict[int, deque[memoryview]] = {}
        self.scheduled = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.http.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, RequestReceived):
                fields = dict(event.headers)
                stream = event.stream_id
                self.pool.ask(
                    get(fields[b":path"], fields[b":authority"]),
                    lambda status, headers, body, stream=stream: self.answer(stream, status, headers, body),
                )
            elif isinstance(event, StreamReset):
                self.waiting.pop(event.stream_id, None)
            elif isinstance(event, WindowUpdated):
                for stream in list(self.waiting):
                    self.pump(stream)
        self.flush()

    def answer(self, stream: int, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.http.send_headers(stream, [(b":status", b"%d" % status), *headers])
        self.waiting[stream] = deque([memoryview(body)])
        self.pump(stream)
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.flush)

    def pump(self, stream: int) -> None:
        rest = self.waiting[stream].pop()
        while True:
            size = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size, len(rest))
            if size == 0 and len(rest):
                self.waiting[stream].append(rest)
                return
            self.http.send_data(stream, bytes(rest[:size]), end_stream=size == len(rest))
            rest = rest[size:]
            if not len(rest):
                del self.waiting[stream]
                return

    def flush(self) -> None:
        self.scheduled = False
        data = self.http.data_to_send()
        if data:
            self.transport.write(data)


if __name__ == "__main__":
    options = arguments()

    async def start() -> object:
        Server.pool = Pool(options.backend)
        return await asyncio.get_running_loop().create_server(Server, "127.0.0.1", options.port, ssl=tls(options, "h2"))

    serve(start)

"""The floor of HTTP/3: aioquic's own server on uvloop, nothing else. GET only."""

import asyncio

from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio import serve as quic_serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from bench.floor.common import arguments, serve
from bench.floor.upstream import Pool, get


class Server(QuicConnectionProtocol):
    pool: Pool
    scheduled = False
    http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if self.http is None:
            self.http = H3Connection(self._quic)
        for http_event in self.http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                fields = dict(http_event.headers)
                stream = http_event.stream_id
                self.pool.ask(
                    get(fields[b":path"], fields[b":authority"]),
                    lambda status, headers, body, stream=stream: self.answer(stream, status, headers, body),
                )

    def answer(self, stream: int, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.http.send_headers(stream, [(b":status", b"%d" % status), *headers])
        self.http.send_data(stream, body, end_stream=True)
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self.scheduled = False
        self.transmit()


if __name__ == "__main__":
    options = arguments()

    async def start() -> object:
        Server.pool = Pool(options.backend)
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
        configuration.load_cert_chain(options.certificate, options.key)
        return await quic_serve("127.0.0.1", options.port, configuration=configuration, create_protocol=Server)

    serve(start)

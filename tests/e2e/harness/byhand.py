"""aioquic's client without its loop: a blocking socket, and every datagram goes where the test sends it."""

import socket
import time
from collections.abc import Callable
from typing import Self

from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted

from harness.authority import Authority
from harness.http3 import Answer
from harness.spoken import note

LIMIT = 20.0
"""Seconds that anything waits."""

SERVER = ("192.0.2.1", 443)
"""Where the client believes that all of it comes from, whoever answers."""


class ByHand:
    """One connection. ``via`` is the socket that it has now; the test may give it another one."""

    def __init__(self, authority: Authority, sni: str = "a.example.com", *, token: bytes = b"", to: bytes | None = None) -> None:
        """With *token*, the first packets bring it to the connection ID *to*."""
        note("HTTP/3")
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=sni, token=token)
        configuration.load_verify_locations(cafile=str(authority.file))
        self.quic = QuicConnection(configuration=configuration)
        if to is not None:
            self.quic._peer_cid.cid = to
        self.http = H3Connection(self.quic)
        self.ready = False
        self.ended: int | None = None
        """The error with which the connection ended."""
        self._answers: dict[int, Answer] = {}
        self._done: set[int] = set()
        self.via = self.another_socket()
        self.quic.connect(SERVER, time.monotonic())

    @staticmethod
    def another_socket() -> socket.socket:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        return udp

    @property
    def retried(self) -> bool:
        """A Retry packet came."""
        return bool(self.quic._retry_count)

    def run(self, port: int, until: Callable[[Self], bool]) -> None:
        """Be a client of 127.0.0.1:*port* until *until* is true. What there is to send then is not sent."""
        end = time.monotonic() + LIMIT
        while not until(self):
            assert time.monotonic() < end, "it never came"
            for data, _ in self.quic.datagrams_to_send(time.monotonic()):
                self.via.sendto(data, ("127.0.0.1", port))
            timer = self.quic.get_timer()
            self.via.settimeout(max(0.001, min(LIMIT, timer - time.monotonic())) if timer is not None else LIMIT)
            try:
                self.quic.receive_datagram(self.via.recv(65536), SERVER, time.monotonic())
            except TimeoutError:
                self.quic.handle_timer(time.monotonic())
            self._read()

    def get(self, port: int, path: str, host: str = "a.example.com") -> Answer:
        """The answer to a request, of which the body is not kept."""
        stream = self.quic.get_next_available_stream_id()
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", path.encode())]
        self._answers[stream] = Answer()
        self.http.send_headers(stream, fields, end_stream=True)
        self.run(port, lambda _: stream in self._done)
        return self._answers[stream]

    def close(self) -> None:
        self.via.close()

    def _read(self) -> None:
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self.ready = True
            elif isinstance(event, ConnectionTerminated):
                self.ended = event.error_code
            for told in self.http.handle_event(event):
                if not isinstance(told, HeadersReceived | DataReceived) or told.stream_id not in self._answers:
                    continue
                answer = self._answers[told.stream_id]
                if isinstance(told, HeadersReceived):
                    answer.headers = {name.decode(): value.decode("latin-1") for name, value in told.headers}
                    answer.status = int(answer.headers.pop(":status"))
                else:
                    answer.size += len(told.data)
                if told.stream_ended:
                    self._done.add(told.stream_id)

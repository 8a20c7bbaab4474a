"""The demo backend tells what the proxy told it."""

import asyncio

import pytest

from proxy.demo.backend import HEAD_LIMIT, BackendProtocol, answer


@pytest.mark.parametrize(
    ("via", "version"),
    [("2 qproxy", "HTTP/2"), ("1.1 qproxy", "HTTP/1.1"), ("3 qproxy", "HTTP/3"), ("1.1 outer, 2.0 qproxy", "HTTP/2"), ("", "HTTP/1.1")],
)
def test_the_version_is_that_of_the_last_hop(via, version):
    _, body = answer("x", "1.1", b"/", {b"host": "a.example.com", b"via": via})
    assert body == f"Hello from a.example.com ({version})!\n".encode()


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({b"host": "127.0.0.1:9001", b"x-forwarded-host": "b.example.com:8443"}, "b.example.com"),
        ({b"host": "b.example.com"}, "b.example.com"),
        ({b"host": "[::1]:9001"}, "[::1]"),
        ({b"host": "[::1]"}, "[::1]"),
    ],
)
def test_the_host_is_the_client_s_without_its_port(fields, host):
    assert f"Hello from {host} (" in answer("x", "1.1", b"/", fields)[1].decode()


def test_it_tells_its_name_the_first_client_and_the_key():
    headers, _ = answer("backend-2", "1.1", b"/", {b"x-forwarded-for": "192.0.2.1, 10.0.0.1", b"x-affinity-key": "ab12"})
    assert dict(headers) == {
        "content-type": "text/plain; charset=utf-8",
        "x-backend": "backend-2",
        "x-client-address": "192.0.2.1",
        "x-affinity-key": "ab12",
    }


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data):
        assert not self.closed
        self.written += data

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True


def said(*pieces: bytes) -> Transport:
    protocol, transport = BackendProtocol("x"), Transport()
    protocol.connection_made(transport)
    for piece in pieces:
        protocol.data_received(piece)
    return transport


def test_requests_in_pieces_on_one_connection_are_answered_in_order():
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: y\r\n\r\n"
    for at in range(len(request)):
        transport = said(request[:at], request[at:])
        health, hello = transport.written.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert health.endswith(b"\r\n\r\nOK\n")
        assert hello.endswith(b"\r\n\r\nHello from y (HTTP/1.1)!\n")
        assert not transport.closed


def test_head_gets_no_body_and_close_is_kept():
    transport = said(b"HEAD / HTTP/1.1\r\nhost: y\r\nconnection: close\r\n\r\n")
    assert transport.written.endswith(b"connection: close\r\n\r\n")
    assert b"content-length: 25\r\n" in transport.written
    assert transport.closed


def test_nonsense_and_endless_heads_end_the_connection():
    assert said(b"\x16\x03\x01 hello\r\n\r\n").written.startswith(b"HTTP/1.1 400 ")
    endless = [b"GET / HTTP/1.1\r\n", *[b"x: " + b"y" * 1000 + b"\r\n"] * (HEAD_LIMIT // 1000 + 3)]
    transport = said(*endless)
    assert transport.written.startswith(b"HTTP/1.1 431 ")
    assert transport.closed

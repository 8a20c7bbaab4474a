"""Each floor serves: the clients of the benchmark get right answers by every engine that is installed, and a body goes up."""

import argparse
import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.load.connections import Quic, Tcp
from bench.servers.place import certificate_files, module
from proxy.engine.choice import ENGINES

H2 = [engine.name for engine in ENGINES if engine.kind == "h2" and engine.why_missing() is None]
QUIC = [engine.name for engine in ENGINES if engine.kind == "quic" and engine.why_missing() is None]
UPLOAD = 2_000_000


class Handler(BaseHTTPRequestHandler):
    """1024 bytes for a GET, the size of what came for a POST."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"x" * 1024 if self.path == "/1k" else b"")

    def do_POST(self):
        self.answer(b"%d" % len(self.rfile.read(int(self.headers["content-length"]))))

    def answer(self, body):
        self.send_response(200)
        self.send_header("connection", "keep-alive")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return certificate_files(tmp_path_factory.mktemp("certificate"))[0]


@pytest.fixture(scope="module")
def backend():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # the floor's idle connections end with the floor
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def floor(version, engine, certificate, backend):
    """The program as the benchmark runs it; gives what a client needs to know."""
    command = [*module(Path(sys.executable), "bench.floor"), version, "--engine", engine, "--port", "0", "--backend", str(backend)]
    with subprocess.Popen([*command, "--certificate", str(certificate)], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline().rpartition(" ")[2])
            yield argparse.Namespace(version=version, port=port, host="a.example.com")
        finally:
            process.terminate()


async def handshakes(client):
    """Whether each of two connections was resumed; both were answered right, or this raises."""
    return [await client.one(resume=False), await client.one(resume=True)]


@pytest.mark.parametrize(("version", "engine"), [("h1", "h1"), ("h1", "bare"), *(("h2", name) for name in H2)])
def test_a_floor_over_tcp_answers_new_and_resumed_connections(version, engine, certificate, backend):
    with floor(version, engine, certificate, backend) as options:
        assert asyncio.run(handshakes(Tcp(options))) == [False, True]


@pytest.mark.parametrize("engine", QUIC)
def test_a_floor_over_udp_answers(engine, certificate, backend):
    with floor("h3", engine, certificate, backend) as options:
        assert asyncio.run(Quic(options).one(resume=False)) is False


def test_a_body_goes_up_at_the_backends_pace(certificate, backend):
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        floor("h1", "h1", certificate, backend) as options,
        socket.create_connection(("127.0.0.1", options.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=options.host) as tls,
    ):
        head = b"POST /upload HTTP/1.1\r\nhost: a.example.com\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % UPLOAD
        tls.sendall(head + b"x" * UPLOAD)
        with tls.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"%d" % UPLOAD

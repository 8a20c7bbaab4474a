"""A demo backend: a small HTTP/1.1 server that says what the proxy told it about the client.

`/health` answers `OK`; every other path answers `Hello from HOST (VERSION)!`. Host and version are those that the client used, taken
from the fields that a proxy sets; the response fields X-Backend, X-Client-Address and X-Affinity-Key tell the rest. Knows nothing of
the proxy's code: it stands for somebody's application. Trusts those fields, so it listens on loopback, or on a network of containers.
"""

import argparse
import asyncio
import signal

import httptools

VERSIONS = {"1.0": "HTTP/1.0", "1.1": "HTTP/1.1", "2": "HTTP/2", "2.0": "HTTP/2", "3": "HTTP/3", "3.0": "HTTP/3"}
"""The received-protocol of Via (RFC 9110, section 7.6.3) as people write it."""

HEAD_LIMIT = 64 * 1024
"""Bytes of header fields of one request, at most."""


def answer(name: str, version: str, target: bytes, fields: dict[bytes, str]) -> tuple[list[tuple[str, str]], bytes]:
    """The response fields and body for a request; *fields* has lower-case names, *version* is that of the backend's own connection."""
    headers = [("content-type", "text/plain; charset=utf-8"), ("x-backend", name)]
    if target.partition(b"?")[0] == b"/health":
        return headers, b"OK\n"
    host = _last(fields.get(b"x-forwarded-host", "")) or fields.get(b"host", "")
    protocol = _last(fields.get(b"via", "")).partition(" ")[0].removeprefix("HTTP/") or version
    client = fields.get(b"x-forwarded-for", "").partition(",")[0].strip()
    for field, value in (("x-client-address", client), ("x-affinity-key", fields.get(b"x-affinity-key", ""))):
        if value:
            headers.append((field, value))
    name_of_host = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return headers, f"Hello from {name_of_host} ({VERSIONS.get(protocol, protocol)})!\n".encode()


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


class BackendProtocol(asyncio.Protocol):
    """One connection: requests are answered in order, each as soon as it is complete."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._target = b""
        self._fields: dict[bytes, str] = {}
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse; what is no HTTP, or too large, ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._target, self._fields, self._size = b"", {}, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        self._count(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field; repeated ones are joined, as RFC 9110, section 5.3, allows."""
        self._count(name + value)
        key, text = name.lower(), value.decode("latin-1")
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_message_complete(self) -> None:
        """Answer."""
        headers, body = answer(self._name, self._parser.get_http_version(), self._target, self._fields)
        keep = self._parser.should_keep_alive()
        headers += [("content-length", str(len(body))), *([] if keep else [("connection", "close")])]
        head = "HTTP/1.1 200 OK\r\n" + "".join(f"{key}: {value}\r\n" for key, value in headers) + "\r\n"
        if self._parser.get_method() == b"HEAD":
            body = b""
        if keep:
            self._write(head.encode("latin-1") + body)
        else:
            self._close(head.encode("latin-1") + body)

    def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > HEAD_LIMIT:
            self._close(b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _close(self, data: bytes) -> None:
        self._write(data)
        if self._transport is not None:
            self._transport.close()


async def serve(name: str, host: str, port: int) -> None:
    """Serve on the address *host* until SIGTERM or SIGINT. Raises OSError where the port can't be had."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: BackendProtocol(name), host, port)
    await stop.wait()
    server.close()


def main() -> None:
    """The command line that `qproxy demo` and docker-compose.yml use."""
    parser = argparse.ArgumentParser(prog="python -m proxy.demo.backend", description="A demo backend of qproxy.")
    parser.add_argument("--name", required=True, help="what it calls itself in X-Backend")
    parser.add_argument("--host", default="127.0.0.1", help="its address; default: %(default)s")
    parser.add_argument("--port", type=int, required=True, help="its port")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.name, options.host, options.port))
    except OSError as error:
        parser.exit(1, f"{options.name}: {error.strerror}\n")


if __name__ == "__main__":
    main()

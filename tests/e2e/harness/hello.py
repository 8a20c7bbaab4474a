"""ClientHellos: real ones out of OpenSSL, and what can be done to them."""

import ssl
import struct
from contextlib import suppress

SERVER_NAME, ALPN, SUPPORTED_VERSIONS, KEY_SHARE = 0, 16, 43, 51


def client_hello(sni: str | None = "a.example.com", alpn: tuple[str, ...] = ("http/1.1",)) -> bytes:
    """The first record of a client that is OpenSSL's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=sni)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def record(payload: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    """A TLS record."""
    return struct.pack("!BHH", kind, version, len(payload)) + payload


def records(hello: bytes, size: int) -> bytes:
    """The same ClientHello in records of at most *size* bytes."""
    payload = hello[5:]
    return b"".join(record(payload[at : at + size]) for at in range(0, len(payload), size))


def edited(hello: bytes, changes: dict[int, bytes | None], *, twice: int | None = None) -> bytes:
    """The ClientHello with the bodies of some extensions changed (None removes one), and the extension *twice* doubled."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    head, rest = hello[9:at], hello[at + 2 :]
    found = dict(changes)
    extensions = []
    while rest:
        kind, length = struct.unpack_from("!HH", rest)
        body: bytes | None = rest[4 : 4 + length]
        rest = rest[4 + length :]
        if kind in found:
            body = found.pop(kind)
        if body is not None:
            extensions += [(kind, body)] * (2 if kind == twice else 1)
    extensions += [(kind, body) for kind, body in found.items() if body is not None]
    block = b"".join(struct.pack("!HH", kind, len(body)) + body for kind, body in extensions)
    payload = head + struct.pack("!H", len(block)) + block
    return record(b"\x01" + len(payload).to_bytes(3, "big") + payload)


def server_name(name: bytes, kind: int = 0) -> bytes:
    """The body of a server_name extension."""
    entry = struct.pack("!BH", kind, len(name)) + name
    return struct.pack("!H", len(entry)) + entry

"""PROXY protocol, versions 1 and 2: who the client is, told by a trusted balancer in front of us.

Knows the format (HAProxy, "The PROXY protocol", 2020/03/05: sections 2.1 and 2.2) and nothing of who is trusted: the listener makes a
Reader only for peers that are. A trusted peer must begin with a header; anything else is an error, since guessing would let a client
that reaches the listener through such a peer speak for others.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from proxy.message import Address

MAX_V1 = 107
"""Bytes of a version 1 header, its CRLF included (section 2.1)."""

MAX_V2 = 4096
"""Bytes behind the fixed 16 of a version 2 header that we take: addresses and TLVs (the format itself would allow 65,535)."""

_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_START = b"PROXY "
_V2_FIXED = 16
_UNSPEC, _INET, _INET6, _UNIX = 0, 1, 2, 3
_ADDRESS_BYTES = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}


_TCP4 = _V2_SIGNATURE + b"\x21\x11\x00\x0c"
_TCP6 = _V2_SIGNATURE + b"\x21\x21\x00\x24"

LOCAL_HEADER = _V2_SIGNATURE + b"\x20\x00\x00\x00"
"""Of a connection that is for nobody else, such as a health check (section 2.2: LOCAL)."""


class ProxyProtocolError(Exception):
    """What was sent is no PROXY protocol header, or not a right one. The connection is to be closed without an answer."""


@dataclass(slots=True)
class Header:
    """What the header says. Both addresses are None for LOCAL, UNKNOWN, UNSPEC and unix sockets: the real peer then counts."""

    source: Address | None
    """The client."""
    destination: Address | None
    """Where the client connected to."""


def header(source: Address, destination: Address) -> bytes:
    """A version 2 header: the client's address, and the one that it has connected to (section 2.2). 28 bytes, or 52.

    Where one is IPv6, the other is mapped into it. Raises ValueError for what is no IP address.
    """
    ports = struct.pack("!HH", source[1], destination[1])
    if ":" not in source[0] and ":" not in destination[0]:
        return b"%b%b%b%b" % (_TCP4, _packed(source[0]), _packed(destination[0]), ports)
    return b"%b%b%b%b" % (_TCP6, _packed_6(source[0]), _packed_6(destination[0]), ports)


def _packed(host: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0]) if ":" in host else socket.inet_pton(socket.AF_INET, host)
    except OSError:
        msg = f"{host} is no IP address"
        raise ValueError(msg) from None


def _packed_6(host: str) -> bytes:
    return _packed(host) if ":" in host else b"\0" * 10 + b"\xff\xff" + _packed(host)


class Reader:
    """Reads the one header at the start of a connection; holds at most ``MAX_V2`` and 16 bytes, and one read."""

    __slots__ = ("_data", "rest")

    def __init__(self) -> None:
        self._data = b""
        self.rest = b""
        """What came after the header, once there is one."""

    def feed(self, data: bytes) -> Header | None:
        """Take bytes; None while the header is not complete. Not to be called again after a header. Raises ProxyProtocolError."""
        held = self._data = self._data + data if self._data else data
        if not held:
            return None
        if held[0] == _V2_SIGNATURE[0]:
            return self._version_2(held)
        return self._version_1(held)

    def _version_1(self, held: bytes) -> Header | None:
        if not held.startswith(_V1_START[: len(held)]):
            _refuse("not a PROXY protocol header")
        end = held.find(b"\r\n", 0, MAX_V1)
        if end < 0:
            if len(held) >= MAX_V1:
                _refuse("version 1 header without an end")
            return None
        self.rest = held[end + 2 :]
        return _line(held[:end])

    def _version_2(self, held: bytes) -> Header | None:
        if not held.startswith(_V2_SIGNATURE[: len(held)]):
            _refuse("not a PROXY protocol header")
        if len(held) < _V2_FIXED:
            return None
        version_command, family, length = struct.unpack_from("!BBH", held, len(_V2_SIGNATURE))
        if version_command >> 4 != 2:
            _refuse("unknown version")
        command = version_command & 0xF
        if command > 1:
            _refuse("unknown command")
        if length > MAX_V2:
            _refuse(f"header of {length} bytes, at most {MAX_V2} are taken")
        if len(held) < _V2_FIXED + length:
            return None
        block = held[_V2_FIXED : _V2_FIXED + length]
        self.rest = held[_V2_FIXED + length :]
        return _block(block, family) if command else Header(None, None)  # LOCAL: all that follows is to be skipped


def _line(line: bytes) -> Header:
    """A version 1 header without its CRLF."""
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Header(None, None)  # the rest of the line is to be ignored
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        _refuse("version 1 header of a wrong form")
    make = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
    source: _Ip | None
    destination: _Ip | None
    try:
        source = make(words[2].decode("ascii"))
        destination = make(words[3].decode("ascii"))
    except ValueError:
        source = destination = None
    if source is None or destination is None or b"%" in line:
        _refuse("version 1 header with a wrong address")
    return Header((_text(source), _port(words[4])), (_text(destination), _port(words[5])))


def _port(word: bytes) -> int:
    """Decimal, 0 to 65535, without sign or leading zeros."""
    if not 0 < len(word) <= 5 or not word.isdigit() or (word[0] == 0x30 and len(word) > 1) or int(word) > 65535:
        _refuse("version 1 header with a wrong port")
    return int(word)


def _block(block: bytes, family: int) -> Header:
    """The addresses of a version 2 header, and TLVs behind them, which are skipped."""
    kind, transport = family >> 4, family & 0xF
    if kind not in _ADDRESS_BYTES or transport > 2:
        _refuse("unknown address family or transport")
    if kind == _UNSPEC or transport == 0:
        return Header(None, None)  # section 2.2: the addresses are to be ignored, and there may be none
    size = _ADDRESS_BYTES[kind]
    if len(block) < size:
        _refuse("header too short for its addresses")
    at = size
    while at < len(block):
        if at + 3 > len(block):
            _refuse("TLV cut off")
        at += 3 + (block[at + 1] << 8 | block[at + 2])
    if at != len(block):
        _refuse("TLV longer than the header")
    if kind == _UNIX:
        return Header(None, None)
    if kind == _INET:
        source, destination, source_port, destination_port = struct.unpack_from("!4s4sHH", block)
        return Header((str(ipaddress.IPv4Address(source)), source_port), (str(ipaddress.IPv4Address(destination)), destination_port))
    source, destination, source_port, destination_port = struct.unpack_from("!16s16sHH", block)
    return Header((_text(ipaddress.IPv6Address(source)), source_port), (_text(ipaddress.IPv6Address(destination)), destination_port))


def _text(address: _Ip) -> str:
    """The address as text; IPv4 mapped into IPv6 as IPv4, as everywhere in the proxy."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _refuse(detail: str) -> NoReturn:
    raise ProxyProtocolError(detail)

"""What a case of the conformance suite is: what a hostile client does, and the exact code that it must hear.

Knows codes and nothing of how they are provoked: ``transport``, ``handshake``, ``http3``, ``qpack`` and ``floods`` beside it are the
tables.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

from harness.raw3 import Raw3

Act: TypeAlias = Callable[[Raw3], Awaitable[None] | object]
"""Bytes to send. What it gives is the stream that the case is about, or nothing."""


class Code(IntEnum):
    """Of an error."""

    @property
    def spelled(self) -> str:
        """As the RFC has it."""
        return self.name


class Quic(Code):
    """Errors of the transport (RFC 9000, section 20.1)."""

    FLOW_CONTROL_ERROR = 0x3
    STREAM_LIMIT_ERROR = 0x4
    STREAM_STATE_ERROR = 0x5
    FINAL_SIZE_ERROR = 0x6
    FRAME_ENCODING_ERROR = 0x7
    TRANSPORT_PARAMETER_ERROR = 0x8
    CONNECTION_ID_LIMIT_ERROR = 0x9
    PROTOCOL_VIOLATION = 0xA
    INVALID_TOKEN = 0xB
    APPLICATION_ERROR = 0xC
    CRYPTO_BUFFER_EXCEEDED = 0xD
    KEY_UPDATE_ERROR = 0xE


class Alert(Code):
    """TLS alerts, as errors of the transport: 0x100 more (RFC 9001, section 4.8)."""

    @property
    def spelled(self) -> str:
        """As the RFC has it."""
        return f"CRYPTO_ERROR ({self.name.lower()})"

    UNEXPECTED_MESSAGE = 0x10A
    HANDSHAKE_FAILURE = 0x128
    ILLEGAL_PARAMETER = 0x12F
    DECODE_ERROR = 0x132
    PROTOCOL_VERSION = 0x146
    MISSING_EXTENSION = 0x16D
    NO_APPLICATION_PROTOCOL = 0x178


class H3(Code):
    """Errors of HTTP/3 (RFC 9114, section 8.1)."""

    H3_NO_ERROR = 0x100
    H3_STREAM_CREATION_ERROR = 0x103
    H3_CLOSED_CRITICAL_STREAM = 0x104
    H3_FRAME_UNEXPECTED = 0x105
    H3_FRAME_ERROR = 0x106
    H3_EXCESSIVE_LOAD = 0x107
    H3_ID_ERROR = 0x108
    H3_SETTINGS_ERROR = 0x109
    H3_MISSING_SETTINGS = 0x10A
    H3_REQUEST_CANCELLED = 0x10C
    H3_REQUEST_INCOMPLETE = 0x10D
    H3_MESSAGE_ERROR = 0x10E


class Qpack(Code):
    """Errors of QPACK (RFC 9204, section 6)."""

    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202


@dataclass(frozen=True)
class Otherwise:
    """What an engine does in place of the code, and why that is right."""

    code: Code | None
    """None: nothing, and the connection serves on."""
    why: str


@dataclass(frozen=True)
class Case:
    """One fault of a client."""

    name: str
    source: str
    """The section that forbids it, or that names the code."""
    act: Act
    code: Code
    stream: bool = False
    """It costs its stream, and the connection serves on."""
    rejected: str = ""
    """The reason under which ``qproxy_rejected_total`` counts it."""
    control: bool = True
    """The client has a control stream before."""
    hello: Callable[[Any], object] | None = None
    """The fault is in the handshake: what is done to the client's connection before it says hello."""
    silent: bool = False
    """The client says no hello of its own; ``act`` does."""
    rounds: int = 1
    """``act`` is done so often at most, until the end comes: a flood."""
    except_for: Mapping[str, Otherwise] = field(default_factory=dict)
    """By engine."""

    def expected(self, engine: str) -> Code | None:
        """What a client of *engine* hears."""
        return self.except_for[engine].code if engine in self.except_for else self.code

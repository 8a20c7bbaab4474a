"""What HELLO envelopes carry: who an instance is, how it is, and where its listeners are. Pure."""

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

State: TypeAlias = Literal["ready", "draining", "overloaded"]
"""Whether an instance takes new connections; while it is ``draining``, those that it has go on."""

STATES: tuple[State, ...] = get_args(State)

MAX_SERVER_ID = 20
"""Bytes; QUIC-LB allows 15."""

MAX_PORTS = 100
"""Listeners; as many as a configuration may have."""

_HEAD = struct.Struct("!QBB")


@dataclass(frozen=True, slots=True)
class Hello:
    """One of them."""

    server_id: bytes
    """That its connection IDs name (QUIC-LB); empty where they name none, as of a tier."""
    state: State
    ports: tuple[int, ...]
    """UDP ports of its listeners, in the order of its configuration."""
    answers: int = 0
    """The time of the HELLO that this answers (``Envelope.time``); 0: it asks for an answer."""

    def encode(self) -> bytes:
        """The payload."""
        head = _HEAD.pack(self.answers, STATES.index(self.state), len(self.server_id))
        return head + self.server_id + b"".join(port.to_bytes(2) for port in self.ports)


def decode(payload: bytes) -> Hello | None:
    """What a payload says; None where it is none."""
    if len(payload) < _HEAD.size:
        return None
    answers, state, length = _HEAD.unpack_from(payload)
    end = _HEAD.size + length
    rest = len(payload) - end
    if state >= len(STATES) or length > MAX_SERVER_ID or rest < 0 or rest % 2 or rest > 2 * MAX_PORTS:
        return None
    ports = tuple(int.from_bytes(payload[at : at + 2]) for at in range(end, len(payload), 2))
    return Hello(payload[_HEAD.size : end], STATES[state], ports, answers)

"""Which socket of an SO_REUSEPORT group a UDP datagram comes to: a classic BPF program that the kernel runs (Linux 4.5).

A worker's slot stands in clear at the end of each connection ID that it gives, so whoever answers with such an ID comes back to it, from
whatever address. All else goes by a keyed hash of the destination connection ID, which is the same in each retransmission of a client's
first packet. Knows the bytes of QUIC that no version may change (RFC 8999), and the standard library only: whoever holds the sockets need
know no more.
"""

import ctypes
import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

UNROUTABLE, SLOTS, MAX_CID_BYTES = 0b111, 256, 20
"""As in ``balancer/quic_lb.py``, which loads a cipher."""

SO_ATTACH_REUSEPORT_CBPF = 51
"""Linux's number (asm-generic/socket.h); Python does not name it."""

MAX_INSTRUCTIONS = 4096
"""Of the kernel's (BPF_MAXINSNS)."""

LEAST = 26
"""Bytes of a datagram with room for a connection ID of any length, behind either header. No packet that can be authentic has less."""

_NETWORK = 0x100000000 - 0x100000
"""Offset of the IP header (SKF_NET_OFF, linux/filter.h), as 32 bits."""

_STEER = 2
"""Where an envelope has its steer, in two octets."""

_SHORT, _LONG = 1, 6
"""Where the destination connection ID begins: behind the first octet, or behind version and length too."""

# linux/bpf_common.h: classes, and what they are made with
_LD_WORD, _LD_HALF = 0x20, 0x28
_LD_LENGTH, _LD_OCTET, _LD_OCTET_AT, _LD_WORD_AT = 0x80, 0x30, 0x50, 0x40
_LDX, _LDX_MEMORY, _LDX_A, _ST, _STX = 0x01, 0x61, 0x07, 0x02, 0x03
_ADD, _ADD_X, _SUB, _MUL, _MOD, _AND, _RSH, _XOR_X = 0x04, 0x0C, 0x14, 0x24, 0x94, 0x54, 0x74, 0xAC
_JUMP, _EQUAL, _EQUAL_X, _GREATER, _AT_LEAST, _ANY_BIT = 0x05, 0x15, 0x1D, 0x25, 0x35, 0x45
_RETURN, _RETURN_A = 0x06, 0x16

_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Steering:
    """Who takes what in a group. Raises ValueError for what can't be."""

    live: Mapping[int, int]
    """Slot to the index of its socket in the group (the order in which they were bound): workers that have connections. What names
    another slot goes by the hash: whoever gets it answers with a stateless reset."""
    accepting: Collection[int]
    """Those of them that take new connections; one at least."""
    key: int
    """32 random bits, the same for the life of a group: without them, nobody can choose a worker for a new connection by its hash."""
    lengths: Mapping[int, int]
    """Configuration ID, 0 to 6, to bytes of a connection ID with a slot at its end (``ids.steered_lengths``). Opaque ones need not be
    named here."""

    def __post_init__(self) -> None:
        if not self.accepting:
            msg = "a group needs a worker that takes new connections"
            raise ValueError(msg)
        if strangers := set(self.accepting) - set(self.live):
            msg = f"slot {min(strangers)} takes new connections and has no worker"
            raise ValueError(msg)
        if not all(0 <= slot < SLOTS and 0 <= index < SLOTS for slot, index in self.live.items()):
            msg = f"slots and sockets are 0 to {SLOTS - 1}"
            raise ValueError(msg)
        if not all(0 <= config < UNROUTABLE and 2 <= length <= MAX_CID_BYTES for config, length in self.lengths.items()):
            msg = f"configuration IDs are 0 to {UNROUTABLE - 1}, and connection IDs with a slot have 2 to {MAX_CID_BYTES} bytes"
            raise ValueError(msg)

    def program(self) -> bytes:
        """The instructions (struct sock_filter, linux/filter.h), in the order of this machine's bytes."""
        text = _Text()
        text.add(_LD_LENGTH)
        text.unless(_AT_LEAST, LEAST, "mixed")  # nobody's: its length spreads it
        text.add(_LD_OCTET, 0)
        text.unless(_ANY_BIT, 0x80, "short")
        for base in (_LONG, _SHORT):
            text.label("long" if base == _LONG else "short")
            text.add(_LDX, base)
            text.add(_STX, 0)
            self._look_up_slot(text, base)
        text.label("slot")
        text.choose(sorted(self.live.items()))
        text.label("hash")
        first, second, third = (
            int.from_bytes(blake2b(b"%c" % number, key=self.key.to_bytes(4), digest_size=4).digest()) | 1 for number in range(3)
        )
        text.add(_LDX_MEMORY, 0)
        text.add(_LD_WORD_AT, 0)
        text.add(_MUL, first)
        text.add(_ST, 1)
        text.add(_LD_WORD_AT, 4)
        text.add(_MUL, second)
        text.add(_LDX_MEMORY, 1)
        text.add(_ADD_X)
        text.label("mixed")
        text.add(_LDX_A)
        text.add(_RSH, 16)
        text.add(_XOR_X)
        text.add(_MUL, third)
        text.add(_RSH, 16)
        text.add(_MOD, len(self.accepting))
        text.choose(list(enumerate(self.live[slot] for slot in sorted(self.accepting))))
        text.add(_RETURN, self.live[min(self.accepting)])
        return text.assembled()

    def envelope_program(self) -> bytes:
        """The same for the port of envelopes, whose *steer* is a slot, or a hash for who takes new connections."""
        text = _Text()
        text.add(_LD_LENGTH)
        text.unless(_AT_LEAST, _STEER + 2, "hash")
        text.add(_LD_HALF, _STEER)
        text.unless(_AT_LEAST, SLOTS, "slot")
        text.jump("hash")
        text.label("slot")
        text.choose(sorted(self.live.items()))
        text.label("hash")
        text.add(_MOD, len(self.accepting))
        text.choose(list(enumerate(self.live[slot] for slot in sorted(self.accepting))))
        text.add(_RETURN, self.live[min(self.accepting)])
        return text.assembled()

    def _look_up_slot(self, text: "_Text", base: int) -> None:
        """Load the slot of the connection ID that begins at *base*, and go on at ``slot``; or at ``hash`` where it is none of our forms."""
        text.add(_LD_OCTET, base)
        text.add(_RSH, 5)
        for config, length in sorted(self.lengths.items()):
            other = f"{base}: not {config}"
            text.unless(_EQUAL, config, other)
            if base == _LONG:
                text.add(_LD_OCTET, _LONG - 1)
                text.unless(_EQUAL, length, "hash")
            text.add(_LD_OCTET, base + length - 1)
            text.jump("slot")
            text.label(other)
        text.unless(_EQUAL, UNROUTABLE, "hash")
        text.add(_LD_OCTET, base)
        text.add(_AND, 0b11111)  # bytes behind this one
        text.when(_GREATER, MAX_CID_BYTES - 1, "hash")
        text.add(_LDX_A)
        if base == _LONG:
            text.add(_LD_OCTET, _LONG - 1)
            text.add(_SUB, 1)
            text.unless(_EQUAL_X, 0, "hash")
        text.add(_LD_OCTET_AT, base)
        text.jump("slot")


def by_source_program(sockets: Sequence[int], key: int) -> bytes:
    """Instructions that spread clients over *sockets* (indices in the group) by a keyed hash of their address and port.

    What comes from one address and port comes to one socket while *sockets* are the same, whatever is in it. Reads the IP header, and what
    is behind it as if it had no options: those of IPv4, and extension headers of IPv6, spread by themselves.
    """
    text = _Text()
    first, second = (int.from_bytes(blake2b(b"source %d" % number, key=key.to_bytes(4), digest_size=4).digest()) | 1 for number in range(2))
    text.add(_LD_OCTET, _NETWORK)
    text.add(_RSH, 4)
    text.unless(_EQUAL, 6, "IPv4")
    for word in range(4):
        text.add(_LD_WORD, _NETWORK + 8 + 4 * word)
        text.add(_MUL, first)
        if word:
            text.add(_LDX_MEMORY, 0)
            text.add(_ADD_X)
        text.add(_ST, 0)
    text.add(_LD_HALF, _NETWORK + 40)
    text.jump("port")
    text.label("IPv4")
    text.add(_LD_WORD, _NETWORK + 12)
    text.add(_MUL, first)
    text.add(_ST, 0)
    text.add(_LD_HALF, _NETWORK + 20)
    text.label("port")
    text.add(_MUL, second)
    text.add(_LDX_MEMORY, 0)
    text.add(_ADD_X)
    text.add(_LDX_A)
    text.add(_RSH, 16)
    text.add(_XOR_X)
    text.add(_MUL, second)
    text.add(_RSH, 16)
    text.add(_MOD, len(sockets))
    text.choose(list(enumerate(sockets)))
    text.add(_RETURN, sockets[0])
    return text.assembled()


def attach(sock: socket.socket, program: bytes) -> None:
    """Have the kernel steer by *program* in the group of *sock*, in the place of the program before. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, description)


class _Text:
    """Instructions, with labels for where jumps go: forwards only, as the kernel wants them."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def add(self, code: int, operand: int = 0) -> None:
        """One that does not jump."""
        self._instructions.append((code, 0, 0, operand))

    def jump(self, label: str) -> None:
        """Go on at *label*, which may be far: only this jump has 32 bits for it, and a conditional one has 8."""
        self._jumps.append((len(self._instructions), label))
        self.add(_JUMP)

    def unless(self, condition: int, operand: int, label: str) -> None:
        """Go on at *label* where the condition does not hold."""
        self._instructions.append((condition, 1, 0, operand))
        self.jump(label)

    def when(self, condition: int, operand: int, label: str) -> None:
        """Go on at *label* where it holds."""
        self._instructions.append((condition, 0, 1, operand))
        self.jump(label)

    def label(self, name: str) -> None:
        """The next instruction is called so."""
        self._labels[name] = len(self._instructions)

    def choose(self, table: list[tuple[int, int]]) -> None:
        """Return what *table* has for the accumulator; go on where it has nothing. By runs of neighbours: most tables are one or two."""
        for low, high, value in _runs(table):
            shifts = [(_ADD, value - low & _WORD)] if value != low else []
            self._instructions.append((_AT_LEAST, 0, 2 + len(shifts), low))
            self._instructions.append((_GREATER, 1 + len(shifts), 0, high))
            for code, operand in shifts:
                self.add(code, operand)
            self.add(_RETURN_A)

    def assembled(self) -> bytes:
        """The bytes of all. Raises ValueError for more than the kernel takes."""
        if len(self._instructions) > MAX_INSTRUCTIONS:
            msg = f"the program has {len(self._instructions)} instructions, and the kernel takes {MAX_INSTRUCTIONS}"
            raise ValueError(msg)
        for at, label in self._jumps:
            self._instructions[at] = (_JUMP, 0, 0, self._labels[label] - at - 1)
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self._instructions)


def _runs(table: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(first key, last key, value of the first) of the stretches in which keys and values both go up by one."""
    runs: list[tuple[int, int, int]] = []
    for key, value in table:
        if runs and key == runs[-1][1] + 1 and value == runs[-1][2] + key - runs[-1][0]:
            runs[-1] = (runs[-1][0], key, runs[-1][2])
        else:
            runs.append((key, key, value))
    return runs

"""Classic BPF, as far as steering needs it: what the kernel checks of a program, and what it does with a packet."""

import struct

WORD = 0xFFFFFFFF
MEMORY = 16


class RefusedError(Exception):
    """The kernel would not take the program."""


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """Checked as in net/core/filter.c: known codes, jumps forwards and within, no memory read before it was written, RET at the end."""
    if not program or len(program) % 8 or len(program) // 8 > 4096:
        raise RefusedError("length")
    text = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    written = [None] * len(text) + [None]
    written[0] = 0
    for at, (code, yes, no, operand) in enumerate(text):
        if written[at] is None:
            raise RefusedError(f"{at} is never reached")
        nexts = [at + 1]
        known = written[at]
        if code in (0x02, 0x03):
            known |= 1 << operand
        elif code == 0x61 and not known >> operand & 1:
            raise RefusedError(f"{at} reads memory that was not written")
        elif code == 0x05:
            nexts = [at + 1 + operand]
        elif code in (0x15, 0x1D, 0x25, 0x35, 0x45):
            nexts = [at + 1 + yes, at + 1 + no]
        elif code in (0x06, 0x16):
            nexts = []
        elif code == 0x94 and not operand:
            raise RefusedError(f"{at} divides by nothing")
        elif code not in (0x80, 0x28, 0x30, 0x50, 0x40, 0x01, 0x07, 0x04, 0x0C, 0x14, 0x24, 0x94, 0x54, 0x74, 0xAC, 0x61):
            raise RefusedError(f"{at} is {code:#x}")
        for after in nexts:
            if after >= len(text):
                raise RefusedError(f"{at} leads out of the program")
            before = written[after]
            written[after] = known if before is None else before & known
    return text


def run(program: bytes, packet: bytes) -> int:
    """What the program returns; 0 where it reads beyond the packet, as in the kernel."""
    text = instructions(program)
    a = x = at = 0
    memory = [0] * MEMORY
    while True:
        code, yes, no, k = text[at]
        at += 1
        match code:
            case 0x80:
                a = len(packet)
            case 0x28 | 0x30 | 0x50 | 0x40:
                start, size = (k if code in (0x28, 0x30) else x + k), {0x28: 2, 0x40: 4}.get(code, 1)
                if start + size > len(packet):
                    return 0
                a = int.from_bytes(packet[start : start + size])
            case 0x01:
                x = k
            case 0x61:
                x = memory[k]
            case 0x02:
                memory[k] = a
            case 0x03:
                memory[k] = x
            case 0x07:
                x = a
            case 0x04:
                a = a + k & WORD
            case 0x0C:
                a = a + x & WORD
            case 0x14:
                a = a - k & WORD
            case 0x24:
                a = a * k & WORD
            case 0x94:
                a %= k
            case 0x54:
                a &= k
            case 0x74:
                a >>= k
            case 0xAC:
                a ^= x
            case 0x05:
                at += k
            case 0x15 | 0x1D | 0x25 | 0x35 | 0x45:
                other = x if code == 0x1D else k
                holds = {0x15: a == other, 0x1D: a == other, 0x25: a > other, 0x35: a >= other, 0x45: bool(a & other)}[code]
                at += yes if holds else no
            case 0x06:
                return k
            case 0x16:
                return a

"""Bodies of any size whose every byte is known beforehand, made without holding them in memory.

Each block begins with its number, so that a lost, doubled or swapped block changes the hash.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache

BLOCK = 256 * 1024 - 19  # no multiple of anybody's buffer size
MIB = 1024 * 1024
GIB = 1024 * MIB


def content(size: int, seed: int = 0) -> Iterator[bytes]:
    """*size* bytes in pieces of at most BLOCK."""
    filling = random.Random(seed).randbytes(BLOCK - 8)
    number = 0
    while size > 0:
        block = number.to_bytes(8, "big") + filling
        yield block[:size]
        size -= BLOCK
        number += 1


@lru_cache(maxsize=64)
def digest(size: int, seed: int = 0) -> str:
    """The SHA-256 of ``content(size, seed)``, in hex."""
    found = hashlib.sha256()
    for piece in content(size, seed):
        found.update(piece)
    return found.hexdigest()

"""A file name for bytes that must never be on a disk: OpenSSL, as Python offers it, reads certificates and keys by name only."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def secret_file(content: bytes) -> Iterator[str]:
    """Give a name under which *content* can be read until the block ends. Raises OSError.

    On Linux it is an anonymous file in memory, elsewhere (or without /proc) a temporary file that only this user can read, removed at
    the end of the block.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("qproxy-secret", os.MFD_CLOEXEC)
        name = f"/proc/self/fd/{descriptor}"
        try:
            if Path(name).exists():
                _write(descriptor, content)
                yield name
                return
        finally:
            os.close(descriptor)
    descriptor, name = tempfile.mkstemp(prefix="qproxy-")  # mode 0600
    try:
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)
        yield name
    finally:
        Path(name).unlink()


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]

"""A process that may have no more file descriptors than a few."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """No more than *count* descriptors can be had in this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 2, hard))
    filled: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            filled.append(os.dup(0))
    for _ in range(count):
        os.close(filled.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filled:
            os.close(descriptor)

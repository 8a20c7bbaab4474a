"""A body of any size passes in both directions on every version, whole, in bounded memory."""

from contextlib import closing

import pytest
from harness.bulk import Curled, Moved, memory_of
from harness.content import GIB, MIB, digest
from harness.figures import report

VERSIONS = ("HTTP/1.1", "HTTP/2", "HTTP/3")
SHORT = 64 * MIB
LONG = {("HTTP/3", "portable"): 256 * MIB}
GROWTH = 64 * MIB
WARM = 4 * MIB  # a transfer that fills every buffer once, before memory is measured


def told(what: str, moved: Moved, growth: int) -> None:
    report(f"{what} {moved.version}: {moved.size // MIB} MiB at {moved.rate:.0f} MiB/s, the proxy grew by {growth / MIB:.1f} MiB")


@pytest.mark.soak
@pytest.mark.timeout(150)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_download_is_whole_and_takes_bounded_memory(authority, proxy, engines, version, soaking):
    size = LONG.get((version, engines), GIB) if soaking else SHORT
    with closing(Curled(authority, proxy, version)) as client:
        assert client.download(f"/bytes/{WARM}").sha256 == digest(WARM)
        with memory_of(proxy) as memory:
            moved = client.download(f"/bytes/{size}")
    told("download", moved, memory.growth)
    assert (moved.status, moved.size, moved.sha256) == (200, size, digest(size))
    assert memory.growth < GROWTH


@pytest.mark.soak
@pytest.mark.timeout(150)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_large_upload_is_whole_and_takes_bounded_memory(authority, proxy, engines, version, soaking):
    size = LONG.get((version, engines), GIB) if soaking else SHORT
    with closing(Curled(authority, proxy, version)) as client:
        assert client.upload("/upload", WARM).sha256 == digest(WARM)
        with memory_of(proxy) as memory:
            moved = client.upload("/upload", size)
    told("upload", moved, memory.growth)
    assert (moved.status, moved.size, moved.sha256) == (200, size, digest(size))
    assert memory.growth < GROWTH

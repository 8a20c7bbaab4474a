"""Lines arrive in order; a reader that stops costs lines, which are counted, and nobody's time."""

import os
from contextlib import contextmanager, suppress
from time import monotonic

import pytest

from proxy.control import writer as module
from proxy.control.writer import LineWriter


@contextmanager
def pipe():
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with suppress(OSError):  # a test may have closed it
                os.close(descriptor)


def read_all(reader: int) -> bytes:
    parts = []
    while part := os.read(reader, 65536):
        parts.append(part)
    return b"".join(parts)


def test_lines_arrive_in_order_and_close_waits_for_them():
    with pipe() as (reader, descriptor):
        writer = LineWriter(descriptor)
        lines = [b"line %d\n" % number for number in range(1000)]
        assert all(writer.write(line) for line in lines)
        writer.close()
        os.close(descriptor)
        assert read_all(reader) == b"".join(lines)
        assert writer.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_costs_counted_lines(blocking):
    with pipe() as (reader, descriptor):
        os.set_blocking(descriptor, blocking)
        writer = LineWriter(descriptor, max_pending=1024 * 1024)
        batch = (b"x" * 1023 + b"\n") * 64
        began = monotonic()
        accepted = sum(writer.write(batch, 64) for _ in range(100))
        assert monotonic() - began < 1
        assert accepted < 100
        assert writer.dropped == (100 - accepted) * 64
        os.set_blocking(reader, True)
        got = 0
        while got < accepted * len(batch):
            got += len(os.read(reader, 1 << 20))
        assert writer.write(b"again\n")
        assert os.read(reader, 100) == b"again\n"
        writer.close()


def test_a_reader_that_has_gone_costs_counted_lines():
    with pipe() as (reader, descriptor):
        os.close(reader)
        writer = LineWriter(descriptor)
        writer.write(b"a\nb\n", 2)
        writer.close()
        assert writer.dropped == 2


def test_close_gives_up_on_a_reader_that_takes_nothing():
    with pipe() as (reader, descriptor):
        writer = LineWriter(descriptor)
        writer.write(b"x" * 1024 * 1024)
        began = monotonic()
        writer.close(0.05)
        assert monotonic() - began < 1
        assert not writer.write(b"late\n")
        assert writer.dropped == 1
        # let the thread end
        os.set_blocking(reader, True)
        got = 0
        while got < 1024 * 1024:
            got += len(os.read(reader, 1 << 20))
        writer._thread.join(5)
        assert not writer._thread.is_alive()
    writer.close()


def test_a_non_blocking_descriptor_that_takes_nothing_is_given_up_after_closing(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.0)
    with pipe() as (_, descriptor):
        os.set_blocking(descriptor, False)
        writer = LineWriter(descriptor)
        writer.write(b"x" * 1024 * 1024, 3)
        writer.close(5)
        assert not writer._thread.is_alive()
        assert writer.dropped == 3

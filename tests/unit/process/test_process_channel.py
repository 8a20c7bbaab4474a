"""Messages and descriptors arrive whole and in order, however they are cut on the way."""

import json
import os
import socket
from pathlib import Path

import pytest

from proxy.process.channel import MAX_DESCRIPTORS, Channel, ChannelClosed


@pytest.fixture
def ends():
    one, other = (Channel(sock) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def all_of(one, other, count):
    """What arrives, while the sender sends on."""
    found = []
    while len(found) < count:
        one.flush()
        found += other.receive()
    return found


def readable(content):
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def test_messages_of_any_size_arrive_in_order(ends):
    one, other = ends
    sent = [b"", b"x", bytes(range(256)) * 20_000, b"last"]
    for message in sent:
        one.send(message)
    assert one.pending > 0, "the large one does not fit at once"
    assert [message for message, _ in all_of(one, other, 4)] == sent
    assert one.pending == 0


def test_descriptors_come_with_their_message(ends):
    one, other = ends
    pipes = [readable(b"%d" % number) for number in range(4)]
    one.send(b"a" * 3_000_000, pipes[:1])
    one.send(b"none")
    one.send(b"b", pipes[1:])
    for pipe in pipes:
        os.close(pipe)  # the channel has its own
    found = all_of(one, other, 3)
    assert [len(descriptors) for _, descriptors in found] == [1, 0, 3]
    assert [os.read(descriptor, 9) for _, descriptors in found for descriptor in descriptors] == [b"0", b"1", b"2", b"3"]
    for _, descriptors in found:
        for descriptor in descriptors:
            os.close(descriptor)


def test_the_end_comes_behind_the_last_message(ends):
    one, other = ends
    one.send(b"goodbye")
    one.close()
    assert other.receive() == [(b"goodbye", [])]
    with pytest.raises(ChannelClosed):
        other.receive()


def test_nobody_there_takes_nothing_and_hurts_nobody(ends):
    one, other = ends
    other.close()
    for _ in range(3):
        one.send(b"hello?", [0])
    assert one.pending == 0


def test_what_is_too_large_is_refused(ends):
    with pytest.raises(ValueError, match="too large"):
        ends[0].send(b"", [0] * (MAX_DESCRIPTORS + 1))


def test_descriptors_that_nobody_took_are_closed():
    one, other = (Channel(sock) for sock in socket.socketpair())
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    pipe = readable(b"")
    one.send(b"x" * 4_000_000, [pipe])
    other.receive()
    os.close(pipe)
    one.close()
    other.close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before - 2


def taken_over(channel):
    """As the code after an upgrade has it: of the one before it, nothing is left but the descriptors."""
    known = json.loads(json.dumps(channel.known()))
    kept = {descriptor: os.dup(descriptor) for descriptor in channel.descriptors()}
    channel.close()
    for descriptor, copy in kept.items():
        os.dup2(copy, descriptor)
        os.close(copy)
    return Channel.taken_over(known)


def test_what_came_by_half_is_whole_after_an_upgrade(ends):
    one, other = ends
    pipes = [readable(b"%d" % number) for number in range(2)]
    one.send(bytes(3_000_000), pipes)
    one.send(b"last")
    assert other.receive() == []
    after = taken_over(other)
    assert not any(os.get_inheritable(descriptor) for descriptor in after.descriptors())
    (first, descriptors), (last, none) = all_of(one, after, 2)
    assert (first, last, none) == (bytes(3_000_000), b"last", [])
    assert [os.read(descriptor, 9) for descriptor in descriptors] == [b"0", b"1"]
    for descriptor in (*descriptors, *pipes):
        os.close(descriptor)
    after.close()


def test_what_was_sent_by_half_is_sent_whole_after_an_upgrade(ends):
    one, other = ends
    pipe = readable(b"0")
    one.send(bytes(range(256)) * 20_000)
    one.send(b"with a descriptor", [pipe])
    os.close(pipe)
    after = taken_over(one)
    assert after.pending > 0
    (first, _), (second, descriptors) = all_of(after, other, 2)
    assert (first, second, after.pending) == (bytes(range(256)) * 20_000, b"with a descriptor", 0)
    assert os.read(descriptors[0], 9) == b"0"
    os.close(descriptors[0])
    after.close()

"""A crew is the same for the code after an upgrade, but for those who have ended."""

import json
import os
import socket

import pytest

from proxy.process.channel import Channel
from proxy.process.crew import Child, Crew


@pytest.fixture
def start():
    """Makes children, and gives the other ends of their channels by process id."""
    channels = {}

    def child(role, pid):
        one, other = map(Channel, socket.socketpair())
        channels[pid] = (one, other)
        return Child(role, pid, one)

    child.ends = channels
    yield child
    for pair in channels.values():
        for channel in pair:
            channel.close()


def test_those_who_live_go_over_an_upgrade(start):
    crew = Crew(1)
    crew.size, crew.drain, crew.listeners = 3, 7.5, [{"host": "::", "port": 1, "tcp": True, "udp": False}]
    crew.controller = start("the controller", 1)
    crew.workers = {position: start(f"worker {3 + position}", 10 + position) for position in range(3)}
    one, dead, ending = crew.workers.values()
    one.serving, one.lent, one.died_quickly, one.began = True, [1, 2], 2, 5.5
    dead.alive = False
    ending.channel.close()
    crew.keep = {"counts": os.open(os.devnull, os.O_RDONLY)}

    descriptors = [one.channel.fileno(), crew.controller.channel.fileno(), crew.keep["counts"]]
    assert list(crew.descriptors()) == descriptors
    known = json.loads(json.dumps(crew.known()))
    for child, descriptor in ((known["workers"][0][1], descriptors[0]), (known["controller"], descriptors[1])):
        child["channel"]["socket"] = os.dup(descriptor)  # the code before is gone; here it is not
    adopted = []
    after = Crew.taken_over(known, lambda child: adopted.append(child) or child)

    assert adopted == [after.controller, after.workers[0]]
    assert (after.bank, after.size, after.wanted, after.drain, after.listeners, after.keep) == (1, 3, 3, 7.5, crew.listeners, crew.keep)
    assert list(after.workers) == [0]
    worker = after.workers[0]
    assert (worker.role, worker.pid, worker.serving, worker.lent) == ("worker 3", 10, True, [1, 2])
    assert (worker.died_quickly, worker.began) == (2, 5.5)
    worker.tell("siblings", slots=[4])
    assert start.ends[10][1].receive() == [(b'{"op": "siblings", "slots": [4]}', [])]
    for child in adopted:
        child.channel.close()
    os.close(crew.keep["counts"])

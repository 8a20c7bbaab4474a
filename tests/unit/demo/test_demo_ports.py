"""A port that is taken is told in one sentence, with its owner where that can be known."""

import os
import socket

import pytest

from proxy.demo.ports import Port, problem

KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_told_with_its_owner_and_a_free_one_is_none(kind):
    with socket.socket(socket.AF_INET, KINDS[kind]) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "TCP":
            taken.listen()
        port = Port("127.0.0.1", taken.getsockname()[1], kind)
        sentence = problem(port)
        assert sentence is not None
        assert sentence.startswith(f"{kind} port {port.number} of 127.0.0.1 can't be used")
        assert f": process {os.getpid()} (" in sentence
        assert sentence.count(".") == 4  # the address's three, and one at the end
    assert problem(port) is None

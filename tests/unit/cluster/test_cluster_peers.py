"""Peers: who is behind which address, who lives, and how much is sent there."""

from itertools import count

import pytest

from proxy.cluster import peers as module
from proxy.cluster.hello import Hello, State
from proxy.cluster.peers import IN_VAIN, UNANSWERED, Peer, Peers

EAST, WEST, SOUTH = ("192.0.2.1", 8444), ("192.0.2.2", 8444), ("192.0.2.3", 8444)

TIMES = count(1)
"""Of HELLOs: each has another."""


def table(*addresses: tuple[str, int], own: bytes = b"me", rate: int = 3) -> Peers:
    peers = Peers(own, rate)
    peers.replace(addresses)
    return peers


def ask(peers: Peers, rounds: int = 1) -> None:
    """HELLOs to all that nobody answers."""
    for _ in range(rounds):
        for peer in peers.begin_round():
            peer.ask(next(TIMES))


def answer(peers: Peers, address: tuple[str, int], server_id: bytes, state: State = "ready") -> Peer | None:
    time = next(TIMES)
    for peer in peers.to_ask():
        if peer.address == address:
            peer.ask(time)
    return peers.heard(address, Hello(server_id, state, (443,), time), time + 250)


def test_a_peer_lives_from_its_answer_on_and_until_so_many_are_missing() -> None:
    peers = table(EAST)
    assert peers.living(b"east") is None
    peer = answer(peers, EAST, b"east", "draining")
    assert peer is not None
    assert (peer.address, peer.state, peer.ports, peer.round_trip) == (EAST, "draining", (443,), 0.00025)
    ask(peers, UNANSWERED - 1)
    assert peer is peers.living(b"east")
    ask(peers)
    assert peers.living(b"east") is None
    assert answer(peers, EAST, b"east") is peers.living(b"east") is peer


def test_what_answers_nothing_that_was_asked_is_not_heard() -> None:
    peers = table(EAST)
    hello = Hello(b"east", "ready", (443,), 1)
    assert peers.heard(EAST, hello, 2) is None
    peers.to_ask()[0].ask(1)
    assert peers.heard(WEST, hello, 2) is None
    assert peers.heard(EAST, hello, 2) is not None
    assert peers.heard(EAST, hello, 2) is None


def test_a_late_answer_counts_while_nothing_newer_was_answered() -> None:
    peers = table(EAST)
    for time in range(1, UNANSWERED + 2):
        peers.to_ask()[0].ask(time)
    assert peers.heard(EAST, Hello(b"e", "ready", (), 1), 9) is None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 3), 9) is not None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 2), 9) is None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 4), 9) is not None


def test_a_dead_one_is_gone_once_it_was_asked_twice_since_a_client_came_for_it() -> None:
    """Not at once: whoever was off the network itself has asked in vain too, and hears of clients again no later than of instances."""
    peers = table(EAST, WEST)
    answer(peers, EAST, b"east")
    assert peers.seek(b"east")
    ask(peers, 100)
    assert not peers.is_gone(b"east")
    for _ in range(IN_VAIN):
        assert not peers.seek(b"east")
        assert not peers.is_gone(b"east")
        ask(peers)
    assert not peers.seek(b"east")
    assert peers.is_gone(b"east")
    answer(peers, EAST, b"east")
    assert peers.seek(b"east")
    assert not peers.is_gone(b"east")
    ask(peers, 100)
    assert not peers.is_gone(b"east"), "what came before it answered counts no more"


def test_one_whose_clients_come_while_it_falls_silent_is_gone_as_soon_as_it_is_dead() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"east")
    ask(peers, UNANSWERED - IN_VAIN)
    for _ in range(IN_VAIN):
        assert peers.seek(b"east")
        assert not peers.is_gone(b"east")
        ask(peers)
    assert not peers.seek(b"east")
    assert peers.is_gone(b"east")


def test_nobody_dies_while_nobody_is_asked() -> None:
    """As in a process that was stopped: what came meanwhile is read before, or right after, the first HELLO that is late."""
    peers = table(EAST, WEST)
    answer(peers, EAST, b"east")
    ask(peers)
    assert peers.seek(b"east")
    assert not peers.is_gone(b"east")
    assert not peers.is_gone(b"west"), "it had no time yet to say who it is"


def test_our_own_address_among_them_is_nobody() -> None:
    peers = table(EAST, WEST)
    answer(peers, EAST, b"me")
    answer(peers, WEST, b"west")
    assert [peer.address for peer in peers.others()] == [WEST]
    assert peers.living(b"me") is None


def test_a_server_id_stays_with_who_has_it_and_goes_to_another_when_that_is_dead() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"id")
    west = answer(peers, WEST, b"id")
    assert peers.living(b"id") is east
    ask(peers, UNANSWERED)
    answer(peers, WEST, b"id")
    assert peers.living(b"id") is west


def test_an_id_is_nobody_s_when_all_have_had_time_to_say_theirs() -> None:
    peers = table(EAST, WEST)
    answer(peers, EAST, b"east")
    ask(peers, UNANSWERED)
    assert not peers.is_gone(b"other")
    ask(peers)
    assert peers.is_gone(b"other")
    peers.replace([EAST, WEST, SOUTH])
    assert not peers.is_gone(b"other")
    ask(peers, UNANSWERED + 1)
    assert peers.is_gone(b"other")
    peers.replace([SOUTH])
    assert peers.is_gone(b"east"), "it was dead, and no list has it now"


def test_where_no_address_is_known_yet_nobody_is_gone() -> None:
    """A name that DNS has not answered for."""
    peers = table()
    ask(peers, 100)
    peers.replace([EAST])
    assert not peers.is_gone(b"east")


def test_an_address_may_become_another_server() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"one")
    answer(peers, EAST, b"two")
    assert peers.living(b"one") is None
    assert peers.living(b"two") is not None


def test_other_addresses_leave_what_is_known_of_those_that_stay() -> None:
    peers = table(EAST, WEST)
    answer(peers, WEST, b"west")
    west, east = peers.living(b"west"), peers.to_ask()[0]
    peers.replace([WEST])
    assert peers.to_ask() == [west]
    peers.replace([WEST, EAST])
    assert east not in peers.to_ask(), "it never answered: nobody knows who was there"


def test_one_that_goes_and_lives_is_there_for_as_long_as_it_answers() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"east")
    answer(peers, WEST, b"west")
    peers.replace([WEST])
    assert answer(peers, EAST, b"east", "draining") is peers.living(b"east") is east
    ask(peers, UNANSWERED)
    assert not peers.is_gone(b"east")
    ask(peers)
    assert [peer.address for peer in peers.to_ask()] == [WEST]
    assert peers.is_gone(b"east")
    assert answer(peers, EAST, b"east") is None


def test_one_that_goes_and_comes_back_is_the_same_and_stays_when_it_is_dead() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"east")
    peers.replace([WEST])
    peers.replace([EAST, WEST])
    ask(peers, UNANSWERED + 1)
    assert peers.to_ask()[0] is east


def test_a_server_id_of_one_that_goes_is_at_once_that_of_another_who_says_so() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"id")
    peers.replace([WEST])
    west = answer(peers, WEST, b"id")
    answer(peers, EAST, b"id")
    assert peers.living(b"id") is west


def test_one_that_no_list_has_is_asked_when_it_asks_and_is_there_once_it_answers() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"east")
    peers.notice(WEST, b"west")
    assert [peer.address for peer in peers.to_ask()] == [EAST, WEST]
    assert [peer.address for peer in peers.others()] == [EAST]
    assert peers.living(b"west") is None
    assert answer(peers, WEST, b"west", "draining") is peers.living(b"west")
    assert [peer.address for peer in peers.others()] == [EAST, WEST]
    ask(peers, UNANSWERED - 1)
    peers.notice(WEST, b"west")  # while it is known that tells nothing new
    peers.replace([EAST])
    assert peers.living(b"west") is not None
    ask(peers, 2)
    assert peers.is_gone(b"west")
    assert [peer.address for peer in peers.to_ask()] == [EAST]


def test_one_that_asks_and_does_not_answer_is_forgotten() -> None:
    peers = table(EAST)
    peers.notice(WEST, b"west")
    ask(peers, UNANSWERED - 1)
    peers.replace([EAST])
    ask(peers)
    assert len(peers.to_ask()) == 2
    ask(peers)
    assert len(peers.to_ask()) == 1


def test_one_that_asks_and_is_listed_then_stays_when_it_is_silent() -> None:
    peers = table(EAST)
    peers.notice(WEST, b"west")
    peers.replace([EAST, WEST])
    ask(peers, UNANSWERED + 1)
    assert len(peers.others()) == 2


@pytest.mark.parametrize("server_id", [b"", b"me"])
def test_a_tier_that_asks_and_our_own_question_are_no_peers(server_id: bytes) -> None:
    peers = table(EAST)
    peers.notice(WEST, server_id)
    assert len(peers.to_ask()) == 1


def test_there_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 1)
    peers = table(EAST, WEST)
    assert ([peer.address for peer in peers.to_ask()], peers.left_out) == ([EAST], 1)
    for number in range(5):
        peers.notice(("198.51.100.1", number), b"other")
    assert len(peers.to_ask()) == 2


def test_so_much_a_second_goes_to_one() -> None:
    peer = Peer(EAST, 3)
    assert [peer.spend(now) for now in (5.0, 5.1, 5.2, 5.3, 5.9, 6.0)] == [True, True, True, False, False, True]


@pytest.mark.parametrize(("ports", "found"), [((8443, 443), 443), ((8443, 9443), 9443), ((8443,), None), ((), None)])
def test_its_listener_for_ours_has_the_same_port_or_the_same_place(ports: tuple[int, ...], found: int | None) -> None:
    peer = Peer(EAST, 1)
    peer.ports = ports
    assert peer.port(443, 1) == found

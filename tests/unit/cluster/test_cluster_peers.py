"""Peers: who is behind which address, who lives, and how much is sent there."""

import pytest

from proxy.cluster import peers as module
from proxy.cluster.hello import Hello, State
from proxy.cluster.peers import DEAD_AFTER, UNANSWERED, Peer, Peers

EAST, WEST = ("192.0.2.1", 8444), ("192.0.2.2", 8444)


def table(*addresses: tuple[str, int], own: bytes = b"me", rate: int = 3) -> Peers:
    peers = Peers(own, rate)
    peers.replace(addresses, 0.0)
    return peers


def answer(peers: Peers, address: tuple[str, int], server_id: bytes, now: float, state: State = "ready") -> Peer | None:
    for peer in peers.to_ask():
        if peer.address == address:
            peer.ask(int(now * 1e6))
    return peers.heard(address, Hello(server_id, state, (443,), int(now * 1e6)), int(now * 1e6) + 250, now)


def test_a_peer_lives_from_its_answer_on_and_for_so_long() -> None:
    peers = table(EAST)
    assert peers.living(b"east", 0.0) is None
    peer = answer(peers, EAST, b"east", 10.0, "draining")
    assert peer is peers.living(b"east", 10.0 + DEAD_AFTER - 0.01)
    assert (peer.address, peer.state, peer.ports, peer.round_trip) == (EAST, "draining", (443,), 0.00025)
    assert peers.living(b"east", 10.0 + DEAD_AFTER) is None
    assert answer(peers, EAST, b"east", 20.0) is peers.living(b"east", 20.0)


def test_what_answers_nothing_that_was_asked_is_not_heard() -> None:
    peers = table(EAST)
    hello = Hello(b"east", "ready", (443,), 1)
    assert peers.heard(EAST, hello, 2, 0.0) is None
    peers.to_ask()[0].ask(1)
    assert peers.heard(WEST, hello, 2, 0.0) is None
    assert peers.heard(EAST, hello, 2, 0.0) is not None
    assert peers.heard(EAST, hello, 2, 0.0) is None


def test_a_late_answer_counts_while_nothing_newer_was_answered() -> None:
    peers = table(EAST)
    for time in range(1, UNANSWERED + 2):
        peers.to_ask()[0].ask(time)
    assert peers.heard(EAST, Hello(b"e", "ready", (), 1), 9, 0.0) is None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 3), 9, 0.0) is not None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 2), 9, 0.0) is None
    assert peers.heard(EAST, Hello(b"e", "ready", (), 4), 9, 0.0) is not None


def test_our_own_address_among_them_is_nobody() -> None:
    peers = table(EAST, WEST)
    answer(peers, EAST, b"me", 0.0)
    answer(peers, WEST, b"west", 0.0)
    assert [peer.address for peer in peers.others()] == [WEST]
    assert peers.living(b"me", 0.0) is None


def test_a_server_id_stays_with_who_has_it_and_goes_to_another_when_that_is_dead() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"id", 0.0)
    west = answer(peers, WEST, b"id", 1.0)
    assert peers.living(b"id", 1.0) is east
    answer(peers, WEST, b"id", DEAD_AFTER + 1)
    assert peers.living(b"id", DEAD_AFTER + 1) is west


def test_who_is_gone_is_known_when_all_have_had_time_to_say_who_they_are() -> None:
    peers = table(EAST)
    assert not peers.is_gone(b"east", DEAD_AFTER - 0.01)
    assert peers.is_gone(b"east", DEAD_AFTER)
    answer(peers, EAST, b"east", 10.0)
    assert not peers.is_gone(b"east", 10.0)
    assert peers.is_gone(b"east", 10.0 + DEAD_AFTER)
    peers.replace([EAST, WEST], 20.0)
    assert peers.is_gone(b"east", 20.0)
    assert not peers.is_gone(b"west", 20.0)
    peers.replace([WEST], 30.0)
    assert peers.is_gone(b"west", 30.0)


def test_an_address_may_become_another_server() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"one", 0.0)
    answer(peers, EAST, b"two", 1.0)
    assert peers.living(b"one", 1.0) is None
    assert peers.living(b"two", 1.0) is not None


def test_other_addresses_leave_what_is_known_of_those_that_stay() -> None:
    peers = table(EAST, WEST)
    answer(peers, WEST, b"west", 0.0)
    west, east = peers.living(b"west", 0.0), peers.to_ask()[0]
    peers.replace([WEST], 0.0)
    assert peers.to_ask() == [west]
    peers.replace([WEST, EAST], 0.0)
    assert east not in peers.to_ask(), "it never answered: nobody knows who was there"


def test_one_that_goes_and_lives_is_there_for_as_long_as_it_answers() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"east", 0.0)
    peers.replace([WEST], 1.0)
    assert answer(peers, EAST, b"east", 4.0, "draining") is peers.living(b"east", 4.0) is east
    peers.forget(4.0 + DEAD_AFTER - 0.01)
    assert not peers.is_gone(b"east", 4.0 + DEAD_AFTER - 0.01)
    peers.forget(4.0 + DEAD_AFTER)
    assert [peer.address for peer in peers.to_ask()] == [WEST]
    assert peers.is_gone(b"east", 4.0 + DEAD_AFTER)
    assert answer(peers, EAST, b"east", 10.0) is None


def test_one_that_goes_and_comes_back_is_the_same_and_stays_when_it_is_dead() -> None:
    peers = table(EAST, WEST)
    east = answer(peers, EAST, b"east", 0.0)
    peers.replace([WEST], 1.0)
    peers.replace([EAST, WEST], 2.0)
    peers.forget(100.0)
    assert peers.to_ask()[0] is east


def test_a_server_id_of_one_that_goes_is_at_once_that_of_another_who_says_so() -> None:
    peers = table(EAST)
    answer(peers, EAST, b"id", 0.0)
    peers.replace([WEST], 1.0)
    west = answer(peers, WEST, b"id", 1.0)
    answer(peers, EAST, b"id", 1.0)
    assert peers.living(b"id", 1.0) is west


def test_one_that_no_list_has_is_asked_when_it_asks_and_is_there_once_it_answers() -> None:
    peers = table(EAST)
    peers.notice(WEST, b"west", 10.0)
    assert [peer.address for peer in peers.to_ask()] == [EAST, WEST]
    assert [peer.address for peer in peers.others()] == [EAST]
    assert peers.living(b"west", 10.0) is None
    assert answer(peers, WEST, b"west", 11.0, "draining") is peers.living(b"west", 11.0)
    assert [peer.address for peer in peers.others()] == [EAST, WEST]
    peers.notice(WEST, b"west", 15.0)  # while it is known that tells nothing new
    peers.replace([EAST], 15.0)
    assert peers.living(b"west", 11.0 + DEAD_AFTER - 0.01) is not None
    peers.forget(11.0 + DEAD_AFTER)
    assert peers.is_gone(b"west", 11.0 + DEAD_AFTER)
    assert [peer.address for peer in peers.to_ask()] == [EAST]


def test_one_that_asks_and_does_not_answer_is_forgotten() -> None:
    peers = table(EAST)
    peers.notice(WEST, b"west", 10.0)
    peers.forget(10.0 + DEAD_AFTER - 0.01)
    assert len(peers.to_ask()) == 2
    peers.forget(10.0 + DEAD_AFTER)
    assert len(peers.to_ask()) == 1


def test_one_that_asks_and_is_listed_then_stays_when_it_is_silent() -> None:
    peers = table(EAST)
    peers.notice(WEST, b"west", 10.0)
    peers.replace([EAST, WEST], 11.0)
    peers.forget(100.0)
    assert len(peers.others()) == 2


@pytest.mark.parametrize("server_id", [b"", b"me"])
def test_a_tier_that_asks_and_our_own_question_are_no_peers(server_id: bytes) -> None:
    peers = table(EAST)
    peers.notice(WEST, server_id, 0.0)
    assert len(peers.to_ask()) == 1


def test_there_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 1)
    peers = table(EAST, WEST)
    assert ([peer.address for peer in peers.to_ask()], peers.left_out) == ([EAST], 1)
    for number in range(5):
        peers.notice(("198.51.100.1", number), b"other", 0.0)
    assert len(peers.to_ask()) == 2


def test_so_much_a_second_goes_to_one() -> None:
    peer = Peer(EAST, 3)
    assert [peer.spend(now) for now in (5.0, 5.1, 5.2, 5.3, 5.9, 6.0)] == [True, True, True, False, False, True]


@pytest.mark.parametrize(("ports", "found"), [((8443, 443), 443), ((8443, 9443), 9443), ((8443,), None), ((), None)])
def test_its_listener_for_ours_has_the_same_port_or_the_same_place(ports: tuple[int, ...], found: int | None) -> None:
    peer = Peer(EAST, 1)
    peer.ports = ports
    assert peer.port(443, 1) == found

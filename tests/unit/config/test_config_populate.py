"""What endpoints stand for: as they are written, and by the SRV records of a name."""

import pytest

from balancer.pool import Member
from proxy.config.compile_pool import BACKUP, compile_endpoint, populate
from proxy.config.model_pool import MAX_ENDPOINTS
from proxy.upstream.names import Service

NAME = "_http._tcp.api.example.com"
SRV = Member(f"srv+http://{NAME}")


def made(*records: Service, source: Member = SRV) -> list[tuple[str, int, int]]:
    members, _ = populate((source,), {NAME: records}.__getitem__)
    return [(member.identity, member.weight, member.backup) for member in members]


def test_a_record_is_a_backend_and_the_order_of_an_answer_does_not_count() -> None:
    one, two = Service(1, "a.example.com", 8080, 1), Service(1, "b.example.com", 80, 1)
    assert made(two, one) == made(one, two) == [("http://a.example.com:8080", 1, 0), ("http://b.example.com", 1, 0)]
    assert made() == []


def test_tls_has_another_default_port_and_verifies_the_domain_that_was_asked_for() -> None:
    source = Member(f"srv+https://{NAME}")
    members, endpoints = populate((source,), lambda _: (Service(1, "a.elsewhere.net", 443, 1), Service(1, "b.elsewhere.net", 80, 1)))
    assert [member.identity for member in members] == ["https://a.elsewhere.net", "https://b.elsewhere.net:80"]
    assert {(endpoint.host, endpoint.secure, endpoint.tls_name) for endpoint in endpoints.values()} == {
        ("a.elsewhere.net", True, "api.example.com"),
        ("b.elsewhere.net", True, "api.example.com"),
    }
    assert compile_endpoint("https://a.elsewhere.net").tls_name is None


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((10, 10, 10), (1, 1, 1)),
        ((33, 33, 33), (1, 1, 1)),
        ((60, 40), (3, 2)),
        ((0, 0), (1, 1)),
        ((0, 100), (1, 1)),
        ((0, 3, 2), (1, 3, 2)),
        ((65535, 1), (256, 1)),
        ((65535, 32768), (256, 128)),
        ((1,), (1,)),
    ],
)
def test_weights_keep_their_proportion(given: tuple[int, ...], taken: tuple[int, ...]) -> None:
    records = [Service(0, f"w{number}", 8080 + number, weight) for number, weight in enumerate(given)]
    assert [weight for _, weight, _ in made(*records)] == list(taken)


def test_weights_count_within_their_priority_and_priorities_by_their_order() -> None:
    records = [Service(20, "c", 80, 7), Service(5, "a", 80, 30), Service(5, "b", 80, 10), Service(65535, "d", 80, 0)]
    assert made(*records) == [("http://a", 3, 0), ("http://b", 1, 0), ("http://c", 1, 1), ("http://d", 1, 2)]
    backups = made(*records, source=Member(SRV.identity, 1, BACKUP))
    assert [rank for *_, rank in backups] == [BACKUP, BACKUP, BACKUP + 1, BACKUP + 2]


def test_an_endpoint_that_is_written_comes_first_and_a_pool_has_a_bound() -> None:
    written = (SRV, Member("http://a", 5, BACKUP), Member("srv+http://other"))
    records = {NAME: (Service(0, "a", 80, 9), Service(0, "b", 80, 9)), "other": (Service(0, "b", 80, 2), Service(0, "c", 80, 2))}
    members, endpoints = populate(written, records.__getitem__)
    assert members == (Member("http://a", 5, BACKUP), Member("http://b"), Member("http://c"))
    assert list(endpoints) == ["http://a", "http://b", "http://c"]
    many = tuple(Service(0, f"w{number}", 80, 1) for number in range(MAX_ENDPOINTS + 100))
    members, endpoints = populate((Member("http://a"), SRV), lambda _: many)
    assert len(members) == len(endpoints) == MAX_ENDPOINTS

"""Which instance gets a datagram: the order of the rules, what each needs, and what is bounded."""

import pytest

from balancer.health import Outcome
from balancer.pool import Member, Pool, PoolSettings
from balancer.quic_lb import Codec, Layout, unroutable
from proxy.l4.header import read_long
from proxy.l4.routing import LEAST_INITIAL, LINGER, RULES, Router, RoutingSettings
from proxy.l4.tables import TableSettings

SECRET = b"s" * 32
OLD, NEW = Codec(Layout(0, 4, 8, key=b"k" * 16)), Codec(Layout(1, 4, 8, slot=True, key=b"q" * 16))
IDENTITIES = ("10.0.0.1:8443", "10.0.0.2:8443", "10.0.0.3:8443")
SERVER_IDS = {b"%04d" % number: identity for number, identity in enumerate(IDENTITIES, 1)}
CLIENT, HOST = b"198.51.100.7 5000", "198.51.100.7"


def long(destination: bytes, source: bytes = b"", version: int = 1) -> bytes:
    return b"\xc3%b%c%b%c%b" % (version.to_bytes(4), len(destination), destination, len(source), source) + bytes(1200)


def short(destination: bytes) -> bytes:
    return b"\x43" + destination + bytes(40)


def pool_of(identities=IDENTITIES, **settings) -> Pool:
    return Pool("l4", [Member(identity) for identity in identities], PoolSettings(probed=True, rise=1, fall=1, **settings), SECRET, 1)


class Tier:
    """A router, with what a test asks of it."""

    def __init__(self, **settings) -> None:
        self.pool = pool_of()
        self.router = Router(self.pool, RoutingSettings(**settings), SECRET)
        self.router.decode_with([OLD])
        self.router.name_instances(SERVER_IDS)

    def goes(self, data: bytes, client: bytes = CLIENT, host: str = HOST, now: float = 0.0) -> tuple[str, str] | None:
        """Where to, and by which rule."""
        before = list(self.router.routed)
        found = self.router.route(data, client, host, now)
        if found is None:
            return None
        (rule,) = (name for name, one, other in zip(RULES, before, self.router.routed, strict=True) if one != other)
        return found.identity, rule

    def down(self, identity: str) -> None:
        self.pool.report(self.pool.find(identity), Outcome.PROBE_FAILED, 0.0)


@pytest.fixture
def tier() -> Tier:
    return Tier()


@pytest.mark.parametrize("shape", [long, short])
def test_an_id_that_names_an_instance_leads_there_from_any_address(tier, shape):
    for server_id, identity in SERVER_IDS.items():
        cid = OLD.encode(server_id, b"n" * 8)
        assert tier.goes(shape(cid)) == (identity, "connection_id")
        assert tier.goes(shape(cid), b"elsewhere", "2001:db8::1") == (identity, "connection_id")
    assert sum(tier.router.entries.values()) == 0


def test_ids_of_all_live_configurations_lead_there_during_a_rotation(tier):
    cid = NEW.encode(b"0002", b"n" * 8, slot=3)
    assert tier.goes(short(cid))[1] == "hash"
    tier.router.decode_with([OLD, NEW])
    assert tier.goes(short(cid)) == (IDENTITIES[1], "connection_id")
    assert tier.goes(short(OLD.encode(b"0003", b"m" * 8))) == (IDENTITIES[2], "connection_id")
    tier.router.decode_with([NEW])
    assert tier.goes(short(OLD.encode(b"0003", b"m" * 8)))[1] == "hash"


def test_of_two_keys_with_one_configuration_id_the_one_that_gives_a_known_server_counts(tier):
    other = Codec(Layout(0, 4, 8, key=b"z" * 16))
    tier.router.decode_with([other, OLD])
    assert tier.goes(short(OLD.encode(b"0001", b"n" * 8))) == (IDENTITIES[0], "connection_id")
    assert tier.goes(short(other.encode(b"0002", b"n" * 8))) == (IDENTITIES[1], "connection_id")


def test_an_instance_that_drains_keeps_what_it_has_and_gets_nothing_new(tier):
    owner, _ = tier.goes(long(b"made up1", b"scid"))
    tier.pool.drain(tier.pool.find(owner), 0.0)
    server_id = next(server_id for server_id, identity in SERVER_IDS.items() if identity == owner)
    assert tier.goes(short(OLD.encode(server_id, b"n" * 8))) == (owner, "connection_id")
    assert tier.goes(long(b"given...", b"scid")) == (owner, "handshake")
    assert tier.goes(long(b"made up1", b"scid2")) == (owner, "destination")
    assert tier.goes(short(bytes([0xE7]) + b"12345678")) == (owner, "client")
    assert all(tier.goes(long(b"new %04d" % number, b"%d" % number), b"another")[0] != owner for number in range(50))


def test_an_instance_that_is_gone_loses_all_to_the_other_rules(tier):
    owner, _ = tier.goes(long(b"made up1", b"scid"))
    tier.down(owner)
    server_id = next(server_id for server_id, identity in SERVER_IDS.items() if identity == owner)
    for data in (long(b"made up1", b"scid"), short(OLD.encode(server_id, b"n" * 8))):
        identity, rule = tier.goes(data)
        assert identity != owner
        assert rule in {"hash", "client"}


def test_a_handshake_stays_where_it_began_though_the_ring_has_changed(tier):
    owner, rule = tier.goes(long(b"made up1", b"scid"))
    assert rule == "hash"
    names = [*IDENTITIES, *(f"10.0.1.{number}:8443" for number in range(50))]
    tier.router.replace(tier.pool.with_members([Member(name) for name in names], 0.0), RoutingSettings(), 0.0)
    moved = sum(tier.goes(long(b"%08d" % number, b"%d" % number))[0] not in IDENTITIES for number in range(100))
    assert moved > 50
    assert tier.goes(long(b"made up1", b"scid"), now=1.0) == (owner, "handshake")
    assert tier.goes(long(b"server's id", b"scid"), now=1.0) == (owner, "handshake")
    assert tier.goes(long(b"made up1", b"scid"), b"another port", now=1.0) == (owner, "destination")


def test_ids_that_an_instance_gave_and_nobody_can_decode_are_learned_from_its_answers(tier):
    owner = tier.pool.find(IDENTITIES[2])
    given = unroutable(b"12345678")
    tier.router.answered(long(b"client's", given), owner, 0.0)
    assert tier.goes(long(given, b"client's"), b"anywhere") == (owner.identity, "destination")
    assert tier.goes(short(given), b"anywhere") == (owner.identity, "destination")
    tier.router.answered(short(b"nothing in it"), owner, 0.0)
    tier.router.answered(b"", owner, 0.0)
    tier.router.answered(b"\xc0", owner, 0.0)
    assert tier.router.entries["destination"] == 1


def test_ids_that_can_be_decoded_take_no_room_in_a_table(tier):
    owner = tier.pool.find(IDENTITIES[2])
    tier.router.answered(long(b"client's", OLD.encode(b"0003", b"n" * 8)), owner, 0.0)
    assert tier.router.entries["destination"] == 0


def test_new_connections_are_dealt_by_what_the_configuration_says():
    by_id, by_address = Tier(), Tier(initial_key="client_address")
    clients = [(b"client %d" % number, f"2001:db8:0:{number}::1") for number in range(60)]
    spread = {by_id.goes(long(b"id %05d" % number, b""), b"from %d" % number, HOST)[0] for number in range(60)}
    assert spread == set(IDENTITIES)
    assert len({by_id.goes(long(b"the same", b"%d" % number), *client)[0] for number, client in enumerate(clients)}) == 1
    assert len({by_address.goes(long(b"id %05d" % number, b""), b"from %d" % number, HOST)[0] for number in range(60)}) == 1
    fresh = [Tier(initial_key="client_address") for _ in clients]
    assert {each.goes(long(b"the same", b""), *client)[0] for each, client in zip(fresh, clients, strict=True)} == set(IDENTITIES)
    one, other = (
        by_address.goes(long(cid, b""), cid, host)[0] for cid, host in ((b"12345678", "2001:db8::1"), (b"abcdefgh", "2001:db8::ff"))
    )
    assert one == other


def test_routers_with_one_secret_agree_without_a_word():
    first, second = Tier(), Tier()
    for number in range(100):
        data = long(b"id %05d" % number, b"%d" % number)
        assert first.goes(data) == second.goes(data)


def test_full_tables_leave_it_to_the_hash_and_are_counted():
    tier = Tier(tables=TableSettings(size=2, lifetime=60))
    for number in range(10):
        assert tier.goes(long(b"id %05d" % number, b"%d" % number), b"client %d" % number)[1] == "hash"
    assert tier.router.entries == {"handshake": 2, "destination": 2, "client": 2}
    assert tier.router.full == {"handshake": 8, "destination": 8, "client": 8}
    assert tier.goes(long(b"id %05d" % 9, b"9"), b"client 9")[1] == "hash"
    assert tier.goes(long(b"id %05d" % 0, b"0"), b"client 0")[1] == "handshake"


@pytest.mark.parametrize(
    "data", [b"\x80", b"\xc0\0\0\0\1", b"\xc0\0\0\0\1\xff" + bytes(40), b"\xc0\0\0\0\1\x08" + bytes(8), b"\x40" * 20, b"\x03" + bytes(60)]
)
def test_what_is_none_of_quic_is_dropped_and_counted(tier, data):
    assert tier.goes(data) is None
    assert tier.router.dropped == {"malformed": 1, "oversized": 0, "no_instance": 0}


def test_without_an_instance_nothing_goes_anywhere(tier):
    for identity in IDENTITIES:
        tier.down(identity)
    assert tier.goes(long(b"made up1", b"scid")) is None
    assert tier.goes(short(b"0123456789")) is None
    assert tier.router.dropped["no_instance"] == 2


def test_long_headers_of_unknown_versions_are_routed_as_well(tier):
    data = long(b"d" * 255, b"s" * 255, version=0xBABABABA)
    assert read_long(data) == (b"d" * 255, b"s" * 255, 0xBABABABA)
    assert tier.goes(data)[1] == "hash"
    assert tier.goes(long(b"", b""))[1] == "hash"


def test_an_instance_that_the_configuration_no_longer_has_keeps_its_flows_while_it_answers(tier):
    gone = tier.pool.find(IDENTITIES[1])
    data = short(OLD.encode(b"0002", b"n" * 8))
    tier.router.replace(tier.pool.with_members([Member(IDENTITIES[0])], 100.0), RoutingSettings(), 100.0)
    assert tier.goes(data, now=110.0) == (gone.identity, "connection_id")
    tier.router.answered(short(b"01234567"), gone, 120.0)
    assert tier.goes(data, now=119.0 + LINGER) == (gone.identity, "connection_id")
    assert tier.goes(data, now=121.0 + LINGER) == (IDENTITIES[0], "hash")


def test_a_departed_instance_is_kept_for_as_long_as_is_said(tier):
    data = short(OLD.encode(b"0002", b"n" * 8))
    tier.router.replace(tier.pool.with_members([Member(IDENTITIES[0])], 100.0), RoutingSettings(), 100.0)
    assert [backend.identity for backend in tier.router.departed] == [*IDENTITIES[1:]]
    tier.router.keep(tier.router.departed[0], 103.0)
    assert tier.goes(data, now=102.0) == (IDENTITIES[1], "connection_id")
    assert not tier.router.forget(102.0)
    assert tier.goes(data, now=103.0) == (IDENTITIES[0], "hash")
    assert tier.router.forget(103.0)
    tier.router.keep(tier.router.departed[0], 1000.0)
    tier.router.answered(short(b"01234567"), tier.router.departed[0], 104.0)
    assert not tier.router.forget(105.0 + LINGER)
    assert [backend.identity for backend in tier.router.departed] == [IDENTITIES[2]]
    assert not tier.router.forget(104.0)


def test_flows_in_tables_find_an_instance_that_left_and_came_back(tier):
    data = long(b"made up1", b"scid")
    identity, _ = tier.goes(data, now=100.0)
    tier.router.replace(
        without := tier.pool.with_members([Member(other) for other in IDENTITIES if other != identity], 101.0), RoutingSettings(), 101.0
    )
    back = without.with_members([Member(other) for other in IDENTITIES], 102.0)
    assert back.find(identity) is not tier.pool.find(identity)
    tier.router.replace(back, RoutingSettings(), 102.0)
    assert tier.goes(data, now=103.0) == (identity, "handshake")
    back.report(back.find(identity), Outcome.PROBE_FAILED, 103.0)
    assert tier.goes(data, now=104.0)[0] != identity


def test_an_instance_that_comes_back_is_known_as_before(tier):
    tier.router.replace(tier.pool.with_members([Member(IDENTITIES[0])], 100.0), RoutingSettings(), 100.0)
    tier.router.replace(pool_of(), RoutingSettings(), 500.0)
    assert tier.goes(short(OLD.encode(b"0002", b"n" * 8)), now=501.0) == (IDENTITIES[1], "connection_id")


def test_an_instance_that_came_up_gets_its_share_by_and_by():
    pool = pool_of(slow_start=100.0)
    late = pool.find(IDENTITIES[0])
    pool.report(late, Outcome.PROBE_FAILED, 0.0)
    pool.report(late, Outcome.PROBE_OK, 1000.0)
    keys = [b"key %d" % number for number in range(3000)]

    def share(now: float) -> float:
        return sum(pool.choose(key, now) is late for key in keys) / len(keys)

    shares = [share(1000.0 + seconds) for seconds in (0, 25, 50, 75, 100)]
    assert shares[0] == 0
    for part, found in zip((0.25, 0.5, 0.75), shares[1:], strict=False):
        assert found == pytest.approx(shares[-1] * part, abs=0.05)
    assert shares == sorted(shares)


def test_where_all_came_up_together_the_ring_decides_as_ever():
    slow, plain = pool_of(slow_start=100.0), pool_of()
    for pool in (slow, plain):
        for backend in pool.backends:
            pool.report(backend, Outcome.PROBE_FAILED, 0.0)
            pool.report(backend, Outcome.PROBE_OK, 1000.0)
    assert all(slow.choose(b"%d" % n, 1000.0).identity == plain.choose(b"%d" % n, 1000.0).identity for n in range(100))


def test_what_is_too_small_to_begin_a_connection_is_dealt_and_not_remembered(tier):
    """A server drops such an Initial (RFC 9000, section 14.1); made-up ones are cheap to send."""
    large = long(b"made up!", b"source")
    small, least = large[: LEAST_INITIAL - 1], large[:LEAST_INITIAL]
    went = tier.goes(small)
    assert went is not None
    assert went[1] == "hash"
    assert sum(tier.router.entries.values()) == 0
    assert tier.goes(least) == went, "by the same hash"
    assert tier.router.entries == {"handshake": 1, "destination": 1, "client": 1}
    assert tier.goes(small) == (went[0], "handshake"), "what belongs to it finds it, whatever its size"


def test_nothing_is_learned_of_ids_that_a_client_may_have_made_up(tier) -> None:
    """An answer of version negotiation has the client's ID as its source; short IDs would soon be all that there are."""
    owner, _ = tier.goes(long(b"made up1", b"scid"))
    other = next(backend for backend in tier.pool.backends if backend.identity != owner)
    for number in range(256):
        tier.router.answered(long(b"scid", bytes([number]), version=0), other, 0.0)
        tier.router.answered(long(b"scid", bytes([number]), version=1), other, 0.0)
        tier.router.answered(long(b"scid", bytes([number]) * 8, version=0), other, 0.0)
    assert tier.router.entries["destination"] == 1
    assert tier.goes(short(b"\xe8 opaque id")) == (owner, "client")


def test_what_no_version_of_today_sends_is_dealt_and_not_remembered(tier) -> None:
    for number in range(20):
        assert tier.goes(long(b"d" * 21, b"%d" % number, version=0xBABABABA))[1] == "hash"
        assert tier.goes(long(b"d" * 8, b"s" * 21 + b"%d" % number, version=0xBABABABA))[1] == "hash"
    assert set(tier.router.entries.values()) == {0}

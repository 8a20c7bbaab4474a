"""The keys of a cluster as metrics: what each does now, and what was opened with it."""

from collections.abc import Iterable

from proxy.cluster.envelope import HELLO, Opener, Sealer
from proxy.engine.quic.retry import Tokens
from proxy.engine.quic.tickets import Tickets
from proxy.key_meters import KeyMeters
from proxy.keys import Key, Keyring, KeySet, Purpose
from proxy.observe import Metrics

PEER = ("192.0.2.1", 4433)


def ring(*epochs: tuple[int, float], shared: bool = True) -> Keyring:
    keys = tuple(Key(epoch, begin, bytes([epoch]) * 32) for epoch, begin in epochs)
    return Keyring(KeySet(keys, bytes(32), shared), bytes(32))


def shown(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    metrics.collect()
    return {labels: cell.value for labels, cell in metrics.families[name].cells.items() if cell.value}


def test_each_key_opens_seals_or_is_next_and_one_that_is_gone_is_not_shown() -> None:
    metrics, keys, now = Metrics(), ring((7, 10), (8, 20), (9, 30)), [25.0]
    metrics.before_read.append(KeyMeters(metrics, keys, lambda: now[0]).show)
    assert shown(metrics, "qproxy_cluster_keys") == {("7", "opens"): 1, ("8", "seals"): 1, ("9", "next"): 1}
    now[0] = 30.0
    assert shown(metrics, "qproxy_cluster_keys") == {("7", "opens"): 1, ("8", "opens"): 1, ("9", "seals"): 1}
    keys.replace(ring((9, 30)).keys)
    assert shown(metrics, "qproxy_cluster_keys") == {("9", "seals"): 1}


def test_before_any_has_begun_the_first_seals() -> None:
    metrics = Metrics()
    metrics.before_read.append(KeyMeters(metrics, ring((7, 10), (8, 20)), lambda: 5.0).show)
    assert shown(metrics, "qproxy_cluster_keys") == {("7", "seals"): 1, ("8", "next"): 1}


def test_who_shares_none_shows_none() -> None:
    metrics = Metrics()
    metrics.before_read.append(KeyMeters(metrics, ring((0, 0), shared=False), lambda: 5.0).show)
    assert shown(metrics, "qproxy_cluster_keys") == shown(metrics, "qproxy_cluster_key_opened_total") == {}


def test_what_is_opened_counts_for_the_key_that_sealed_it_and_what_is_forged_for_none() -> None:
    metrics, now = Metrics(), [25.0]
    old, keys = ring((7, 10)), ring((7, 10), (8, 20))
    metrics.before_read.append(KeyMeters(metrics, keys, lambda: now[0]).show)
    opener = Opener({epoch: keys.derive(Purpose.ENVELOPE, epoch) for epoch in (7, 8)}, keys.opened[Purpose.ENVELOPE])
    for sealing in (old, keys, keys):
        ticket = Tickets(sealing, lambda: now[0], bytes).seal(b"terms", bytes(16), b"state")
        token = Tokens(sealing, bytes).seal(PEER, b"original", b"source", now[0])
        epoch = sealing.sealing(now[0])
        envelope = Sealer(epoch, sealing.derive(Purpose.ENVELOPE, epoch), _names).seal(HELLO, b"x", now[0])
        for forged in (False, True):
            opened: Iterable[object] = (
                Tickets(keys, lambda: now[0], bytes).open(b"others" if forged else b"terms", ticket),
                opener.open(envelope[:-1] + bytes([envelope[-1] ^ forged]), now[0]),
            )
            assert all(found is None for found in opened) == forged
            Tokens(keys, bytes).open(token[:-1] + bytes([token[-1] ^ forged]), PEER, b"source", now[0])
    assert shown(metrics, "qproxy_cluster_key_opened_total") == {
        (epoch, kind): count for epoch, count in (("7", 1), ("8", 2)) for kind in ("ticket", "token", "envelope")
    }


_NUMBERS = iter(range(100))


def _names(size: int) -> bytes:
    return next(_NUMBERS).to_bytes(size)

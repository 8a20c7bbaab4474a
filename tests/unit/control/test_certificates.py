"""Certificates from changed files: published when right, complained of once when wrong, in virtual time; and once through, for real."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.config.material import CertificateFiles, self_signed
from proxy.control import certificates
from proxy.control.certificates import SETTLE, CertificateRefresher, with_certificates
from proxy.listen.tls import ContextError, TlsContexts
from proxy.observe import Metrics
from proxy.snapshot import Snapshot
from proxy.sni import Certificate, SniTable, TlsProfile
from tests.unit import exchange_world

A = "a.example.com"


class Recorder:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **details: self.lines.append((level, event, details))

    def at(self, level: str) -> list[str]:
        return [event for each, event, _ in self.lines if each == level]


class Edge:
    """What ``app`` is to the refresher: a snapshot that certificates are put into."""

    def __init__(self, present: Mapping[str, Certificate]) -> None:
        self.present = dict(present)
        self.refused: set[str] = set()
        self.calls = 0
        self.published = asyncio.Event()

    def publish(self, found: Mapping[str, Collection[Certificate]]) -> list[str]:
        self.calls += 1
        if any(certificate.source in self.refused for certificates in found.values() for certificate in certificates):
            raise ContextError("ee key too small")
        last = {domain: certificates[-1] for domain, certificates in found.items()}
        changed = [domain for domain, each in last.items() if each.chain_pem != self.present[domain].chain_pem]
        self.present.update(last)
        if changed:
            self.published.set()
        return changed


class World:
    """A folder with pairs of files, a refresher on it, and a clock that is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Recorder()
        self.metrics = Metrics()
        self.now = 1000.0

    def start(self, *files: CertificateFiles, edge: Edge) -> CertificateRefresher:
        self.edge = edge
        self.refresher = CertificateRefresher(files, edge.publish, self.log, self.metrics)
        assert self.look() is None
        assert (self.log.lines, edge.published.is_set()) == ([], False)
        return self.refresher

    def look(self, after: float = 0.1) -> float | None:
        self.now += after
        return self.refresher.check(self.now)

    def failures(self) -> dict[str, float]:
        return {labels[0]: cell.value for labels, cell in self.metrics.families["qproxy_certificate_reload_failures_total"].cells.items()}

    def ends(self) -> dict[str, float]:
        return {labels[0]: cell.value for labels, cell in self.metrics.families["qproxy_certificate_not_after_seconds"].cells.items()}


def write(certificate: Certificate, chain: Path, key: Path | None = None) -> None:
    if key is None:
        chain.write_bytes(certificate.chain_pem + certificate.key_pem)
        return
    chain.write_bytes(certificate.chain_pem)
    key.write_bytes(certificate.key_pem)


def made(*names: str) -> Certificate:
    return self_signed(names or (A,))


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return tmp_path / "a.pem", tmp_path / "a.key"


def files(pair: tuple[Path, Path], *domains: str) -> list[CertificateFiles]:
    return [CertificateFiles(domain, *pair) for domain in domains or (A,)]


def started(world: World, pair: tuple[Path, Path], *domains: str) -> Certificate:
    first = made(*(domains or (A,)))
    write(first, *pair)
    world.start(*files(pair, *domains), edge=Edge(dict.fromkeys(domains or (A,), first)))
    return first


def test_unchanged_files_are_read_once_and_say_nothing(world, pair, monkeypatch):
    first = started(world, pair)
    monkeypatch.setattr(certificates, "load_certificate", lambda *_: pytest.fail("read again"))
    assert [world.look() for _ in range(3)] == [None] * 3
    assert world.ends() == {A: first.not_after}


def test_a_new_pair_is_published_at_once(world, pair):
    started(world, pair)
    renewed = made()
    write(renewed, *pair)
    assert world.look() is None
    assert world.edge.present[A].chain_pem == renewed.chain_pem
    assert world.log.lines == [("info", f"Updated certificate for domain: {A}", {"source": f"{pair[0]}, {pair[1]}"})]
    assert world.failures() == {}


def test_a_pair_that_changed_before_the_first_look_is_published(world, pair):
    write(made(), *pair)
    world.edge = Edge({A: made()})
    world.refresher = CertificateRefresher(files(pair), world.edge.publish, world.log, world.metrics)
    assert world.look() is None
    assert world.log.at("info") == [f"Updated certificate for domain: {A}"]


def test_certificate_then_key_is_no_error_while_it_settles(world, pair):
    started(world, pair)
    renewed = made()
    pair[0].write_bytes(renewed.chain_pem)
    due = world.look()
    assert due == world.now + SETTLE
    assert world.look(SETTLE / 2) == due
    pair[1].write_bytes(renewed.key_pem)
    assert world.look(SETTLE / 4) is None
    assert world.edge.present[A].key_pem == renewed.key_pem
    assert world.log.at("error") == []
    assert world.look(10 * SETTLE) is None
    assert world.failures() == {}


def test_a_pair_that_stays_mismatched_is_complained_of_once(world, pair):
    first = started(world, pair)
    pair[0].write_bytes(made().chain_pem)
    assert world.look() is not None
    assert [world.look(SETTLE), world.look(SETTLE), world.look(60)] == [None] * 3
    assert world.edge.present[A] is not None
    assert world.edge.present[A].chain_pem == first.chain_pem
    assert world.log.lines == [
        (
            "error",
            "certificate not updated, the present one stays in use",
            {"domains": [A], "reason": f"{pair[1]}: does not belong to the certificate in {pair[0]}"},
        )
    ]
    assert world.failures() == {A: 1}
    assert world.ends() == {A: first.not_after}


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_broken_files_leave_the_present_certificate(world, pair, content):
    first = started(world, pair)
    pair[0].write_bytes(content)
    world.look()
    world.look(SETTLE)
    assert world.edge.present[A].chain_pem == first.chain_pem
    assert (len(world.log.at("error")), world.failures()) == (1, {A: 1})


def test_a_missing_file_is_complained_of_and_its_return_heals(world, pair):
    started(world, pair)
    pair[1].unlink()
    world.look()
    world.look(SETTLE)
    assert world.failures() == {A: 1}
    renewed = made()
    write(renewed, *pair)
    world.look()
    assert world.edge.present[A].chain_pem == renewed.chain_pem


def test_each_new_breakage_is_complained_of(world, pair):
    started(world, pair)
    for count in (1, 2):
        pair[0].write_bytes(b"junk" * count)
        world.look()
        world.look(SETTLE)
        assert world.failures() == {A: count}


def test_a_file_that_changes_while_it_is_read_is_read_again(world, pair, monkeypatch):
    started(world, pair)
    read = certificates.load_certificate
    half, whole = made(), made()
    write(half, *pair)

    def read_and_replace(*both: Path) -> Certificate:
        found = read(*both)
        monkeypatch.setattr(certificates, "load_certificate", read)
        write(whole, *pair)
        return found

    monkeypatch.setattr(certificates, "load_certificate", read_and_replace)
    assert world.look() is not None
    assert not world.edge.published.is_set()
    assert world.look() is None
    assert world.edge.present[A].chain_pem == whole.chain_pem


def test_one_pair_serves_several_domains(world, pair):
    started(world, pair, A, f"*.{A}")
    renewed = made(A, f"*.{A}")
    calls = world.edge.calls
    write(renewed, *pair)
    world.look()
    assert world.edge.calls == calls + 1
    assert world.log.at("info") == [f"Updated certificate for domain: {A}", f"Updated certificate for domain: *.{A}"]
    assert world.ends() == {A: renewed.not_after, f"*.{A}": renewed.not_after}


def test_a_certificate_that_no_longer_covers_its_domain_is_refused(world, pair):
    first = started(world, pair)
    write(made("other.example.com"), *pair)
    world.look()
    world.look(SETTLE)
    assert world.edge.present[A].chain_pem == first.chain_pem
    assert "does not cover a.example.com" in str(world.log.lines[0][2]["reason"])
    assert world.failures() == {A: 1}


def test_the_default_certificate_may_name_anything(world, pair):
    write(made("x.example"), *pair)
    world.start(*files(pair, "default"), edge=Edge({"default": loaded(pair)}))
    write(made("y.example"), *pair)
    world.look()
    assert world.log.at("info") == ["Updated certificate for domain: default"]


def loaded(pair: tuple[Path, Path]) -> Certificate:
    return certificates.load_certificate(*pair)


def test_what_openssl_refuses_costs_no_other_pair_its_renewal(world, tmp_path):
    pairs = {name: (tmp_path / f"{name}.pem", tmp_path / f"{name}.pem") for name in ("a.example.com", "b.example.com")}
    for name, each in pairs.items():
        write(made(name), each[0])
    world.start(
        *(CertificateFiles(name, *each) for name, each in pairs.items()), edge=Edge({name: loaded(each) for name, each in pairs.items()})
    )
    world.edge.refused.add(str(pairs["a.example.com"][0]))
    for name, each in pairs.items():
        write(made(name), each[0])
    world.look()
    world.look(SETTLE)
    assert world.log.at("info") == ["Updated certificate for domain: b.example.com"]
    assert world.log.lines[-1] == (
        "error",
        "certificate not updated, the present one stays in use",
        {"domains": ["a.example.com"], "reason": "ee key too small"},
    )
    assert world.failures() == {"a.example.com": 1}


def test_an_expired_certificate_is_used_with_a_warning(world, pair):
    started(world, pair)
    write(self_signed((A,), now=1_000_000_000.0), *pair)
    world.look()
    assert world.log.at("info") == [f"Updated certificate for domain: {A}"]
    assert len(world.log.at("warning")) == 1
    assert "expired on" in world.log.at("warning")[0]


def test_symbolic_links_are_followed(world, tmp_path):
    """As Kubernetes swaps a mounted secret: file -> ..data/file, ..data -> a new folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(made(), tmp_path / name / "a.pem")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "a.pem").symlink_to("..data/a.pem")
    both = (tmp_path / "a.pem", tmp_path / "a.pem")
    world.start(*files(both), edge=Edge({A: loaded(both)}))
    (tmp_path / "..tmp").symlink_to("two")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")  # noqa: PTH105  # a link is renamed, not what it points to
    world.look()
    assert world.log.at("info") == [f"Updated certificate for domain: {A}"]


def test_a_reload_adds_and_removes_files(world, pair, tmp_path):
    started(world, pair)
    other = (tmp_path / "b.pem", tmp_path / "b.pem")
    write(made("b.example.com"), other[0])
    world.edge.present["b.example.com"] = loaded(other)
    world.refresher.replace([CertificateFiles("b.example.com", *other)])
    world.look()
    assert world.ends() == {"b.example.com": loaded(other).not_after}
    write(made(), *pair)
    world.look()
    assert world.log.lines == []
    renewed = made("b.example.com")
    write(renewed, other[0])
    world.look()
    assert world.edge.present["b.example.com"].chain_pem == renewed.chain_pem


# With a real loop, a real watcher and real handshakes


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await condition.wait()


async def test_a_renewal_on_disk_is_published_without_being_told(world, pair):
    write(made(), *pair)
    world.edge = Edge({A: loaded(pair)})
    refresher = CertificateRefresher(files(pair), world.edge.publish, world.log, world.metrics)
    running = asyncio.create_task(refresher.run())
    try:
        while world.edge.calls == 0:
            await asyncio.sleep(0)
        renewed = made()
        for file, content in zip(pair, (renewed.chain_pem, renewed.key_pem), strict=True):
            temporary = file.with_suffix(".new")
            temporary.write_bytes(content)
            temporary.replace(file)
        await until(world.edge.published)
        assert world.edge.present[A].chain_pem == renewed.chain_pem
        assert world.log.at("error") == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_without_a_watcher_the_files_are_looked_at_all_the_same(world, pair, monkeypatch):
    async def broken(_files: object) -> AsyncIterator[object]:
        raise OSError(28, "inotify watch limit reached")
        yield

    monkeypatch.setattr(certificates, "LOOK_WITHOUT_WATCH", 0.02)
    write(made(), *pair)
    world.edge = Edge({A: loaded(pair)})
    refresher = CertificateRefresher(files(pair), world.edge.publish, world.log, world.metrics, watch=broken)
    running = asyncio.create_task(refresher.run())
    try:
        while world.edge.calls == 0:
            await asyncio.sleep(0)
        write(made(), *pair)
        await until(world.edge.published)
        assert world.log.at("warning") == ["certificate files can't be watched; they are looked at every second"]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_reload_moves_the_watcher(world, pair):
    watched: list[list[Path]] = []
    again = asyncio.Event()

    async def watch(paths: list[Path]) -> AsyncIterator[object]:
        watched.append(list(paths))
        if len(watched) == 2:
            again.set()
        yield None
        await asyncio.Event().wait()

    write(made(), *pair)
    world.edge = Edge({A: loaded(pair)})
    refresher = CertificateRefresher(files(pair), world.edge.publish, world.log, world.metrics, watch=watch)
    running = asyncio.create_task(refresher.run())
    try:
        while world.edge.calls == 0:
            await asyncio.sleep(0)
        refresher.replace([CertificateFiles(A, pair[0], pair[0])])
        await until(again)
        assert watched == [sorted(pair), [pair[0]]]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def snapshot(exact: dict[str, TlsProfile], wildcard: dict[str, TlsProfile], default: TlsProfile) -> Snapshot:
    return replace(exchange_world.World().services.snapshot, sni=SniTable(exact, wildcard, default, refuse_unknown=False))


def test_only_the_profiles_with_a_new_certificate_are_replaced():
    profiles = {name: TlsProfile(made(name), None, name) for name in (A, "b.example.com", f"*.{A}")}
    default = TlsProfile(made("x"), None, "default", is_default=True)
    before = snapshot({A: profiles[A], "b.example.com": profiles["b.example.com"]}, {A: profiles[f"*.{A}"]}, default)
    renewed = made(A, f"*.{A}")
    after, changed = with_certificates(
        before, {A: [renewed], f"*.{A}": [renewed], "b.example.com": [profiles["b.example.com"].certificate], "gone.example.com": [renewed]}
    )
    assert changed == [A, f"*.{A}"]
    assert after.sni.select("b.example.com") is profiles["b.example.com"]
    assert after.sni.select(None) is default
    assert [after.sni.select(name).certificate for name in (A, f"x.{A}")] == [renewed, renewed]
    assert (after.sni.exact[A].domain, after.sni.wildcard[A].domain) == (A, f"*.{A}")
    contexts = TlsContexts()
    contexts.build(before)
    kept = contexts.get(profiles["b.example.com"], frozenset({"h2"}))
    contexts.build(after)
    assert contexts.get(after.sni.exact["b.example.com"], frozenset({"h2"})) is kept


def test_of_several_certificates_the_one_from_the_same_files_is_replaced_and_their_order_kept():
    ecdsa, rsa = replace(made(A), source="ecdsa"), replace(made(A), source="rsa", kind="RSA")
    before = snapshot({A: TlsProfile(ecdsa, None, A).showing([rsa, ecdsa])}, {}, TlsProfile(made("x"), None, "default", is_default=True))
    assert before.sni.exact[A].certificates == (ecdsa, rsa)
    renewed = replace(made(A), source="rsa", kind="RSA")
    after, changed = with_certificates(before, {A: [renewed]})
    assert (after.sni.exact[A].certificates, changed) == ((ecdsa, renewed), [A])
    both = [replace(made(A), source="rsa", kind="RSA"), replace(made(A), source="ecdsa")]
    after, _ = with_certificates(after, {A: both})
    assert after.sni.exact[A].certificates == (both[1], both[0])
    same_kind, _ = with_certificates(after, {A: [replace(made(A), source="rsa")]})
    with pytest.raises(ContextError, match="an alternative has the same kind of key, ECDSA"):
        TlsContexts().build(same_kind)


def test_the_same_certificates_leave_the_same_snapshot():
    default = TlsProfile(made("x"), None, "default", is_default=True)
    before = snapshot({}, {}, default)
    assert with_certificates(before, {"default": [default.certificate]}) == (before, [])
    assert with_certificates(before, {})[0] is before

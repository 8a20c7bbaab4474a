"""New certificates from their files, without a reload: a matching pair is published, a broken one leaves the present one in use.

Knows files by name, their stamps, and how to read a pair; nothing of contexts or handshakes (``publish`` brings a certificate there).
The watcher only says when to look: what has changed is told by the files' stamps, looked at now and then even when no word comes, so
that a missed event costs seconds and not a renewal.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time as wall_clock
from typing import TypeAlias

from proxy.config.material import CertificateFiles, MaterialError, certificate_warnings, load_certificate
from proxy.config.watch import watch_files
from proxy.listen.tls import ContextError
from proxy.observe import Log, Metrics
from proxy.snapshot import Snapshot
from proxy.sni import Certificate, SniTable, TlsProfile
from proxy.tasks import Tasks

SETTLE = 0.5
"""Seconds for which a broken pair may be one that is being replaced, file after file, before it is complained of."""

LOOK_EVERY = 10.0
"""Seconds between looks at the stamps when the watcher says nothing."""

LOOK_WITHOUT_WATCH = 1.0
"""The same when there is no watcher (its limit of the system is reached, or the folder is gone)."""

Publish: TypeAlias = Callable[[Mapping[str, Collection[Certificate]]], Collection[str]]
"""Takes certificates by domain, brings those that differ from the present ones to new handshakes, and gives their domains.

A domain may have several, with keys of different kinds. May raise ContextError, when it has changed nothing.
``with_certificates`` does its main part.
"""

Watch: TypeAlias = Callable[[Collection[Path]], AsyncIterator[object]]
"""Yields whenever one of the files may have changed, symbolic links on the way included."""

_Pair: TypeAlias = tuple[Path, Path]
_Stamp: TypeAlias = tuple[tuple[int, ...] | None, ...]
"""Of each file: device, inode, size, times of change; None for one that is not there."""


def with_certificates(snapshot: Snapshot, certificates: Mapping[str, Collection[Certificate]]) -> tuple[Snapshot, list[str]]:
    """The snapshot with *certificates* (by domain) in use, each in place of the one from the same files; and the domains that it changes.

    Profiles that stay the same are the same objects, and so is the whole snapshot when all do. Domains that it has not are skipped.
    """
    changed: list[str] = []
    sni = snapshot.sni

    def renewed(profile: TlsProfile) -> TlsProfile:
        new = {certificate.source: certificate for certificate in certificates.get(profile.domain, ())}
        if not any(_differs(now, new.get(now.source, now)) for now in profile.certificates):
            return profile
        changed.append(profile.domain)
        return profile.showing(new.get(now.source, now) for now in profile.certificates)

    exact = {name: renewed(profile) for name, profile in sni.exact.items()}
    wildcard = {name: renewed(profile) for name, profile in sni.wildcard.items()}
    default = renewed(sni.default)
    if not changed:
        return snapshot, []
    return replace(snapshot, sni=SniTable(exact, wildcard, default, sni.refuse_unknown)), changed


def _differs(one: Certificate, other: Certificate) -> bool:
    return (one.chain_pem, one.key_pem) != (other.chain_pem, other.key_pem)


@dataclass(slots=True)
class _State:
    """What is known of one pair of files."""

    domains: tuple[str, ...]
    judged: _Stamp | None = None
    """The stamp of what is in use, or was complained of: nothing to do while it stands."""
    broken: _Stamp | None = None
    """The stamp of what could not be read, not yet complained of."""
    settled_at: float = 0.0
    """When it will be."""
    not_after: float | None = None
    """End of what was read last."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a look at a changed pair gave."""

    pair: _Pair
    stamp: _Stamp
    result: Certificate | str
    """The certificate, or what is wrong."""


class CertificateRefresher:
    """Watches the files behind all certificates. Make it, start ``run`` as a task, tell it of a reload with ``replace``."""

    def __init__(
        self,
        files: Iterable[CertificateFiles],
        publish: Publish,
        log: Log,
        metrics: Metrics,
        *,
        watch: Watch = watch_files,
    ) -> None:
        self._publish = publish
        self._log = log
        self._watch = watch
        self._failures = metrics.counter(
            "qproxy_certificate_reload_failures_total", "Changed certificate files that could not be used.", ("domain",)
        )
        self._not_after = metrics.gauge(
            "qproxy_certificate_not_after_seconds",
            "End of the certificate read last from its files, in seconds since the epoch; of several, the first to end.",
            ("domain",),
        )
        self._tasks = Tasks(log)
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._states: dict[_Pair, _State] = {}
        self._adopt(files)

    def replace(self, files: Iterable[CertificateFiles]) -> None:
        """Watch *files* from now on; what is known of those that stay is kept."""
        self._adopt(files)
        if self._watching is not None:
            self._watch_anew()
        self._wake.set()

    async def run(self) -> None:
        """Look, publish, wait for the next change; until cancelled."""
        clock = asyncio.get_running_loop().time
        self._watch_anew()
        try:
            while True:
                self._wake.clear()
                findings = await asyncio.to_thread(self._look, self._known())
                due = self._judge(findings, clock())
                every = LOOK_WITHOUT_WATCH if self._watching is None or self._watching.done() else LOOK_EVERY
                wait = every if due is None else min(every, max(0.0, due - clock()))
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await self._tasks.close()

    def check(self, now: float) -> float | None:
        """One look and what follows from it; gives the time to look again at a pair that is not settled. *now* in seconds."""
        return self._judge(self._look(self._known()), now)

    def _adopt(self, files: Iterable[CertificateFiles]) -> None:
        domains: dict[_Pair, list[str]] = {}
        for each in files:
            domains.setdefault((each.certificate, each.key), []).append(each.domain)
        states = {}
        for pair, names in domains.items():
            state = self._states.get(pair) or _State(())
            if state.domains != tuple(names):
                state = _State(tuple(names))
            states[pair] = state
        self._states = states
        gone = set(self._not_after.cells) - {(domain,) for state in states.values() for domain in state.domains}
        for labels in gone:
            del self._not_after.cells[labels]

    def _watch_anew(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        files = sorted({file for pair in self._states for file in pair})
        self._watching = self._tasks.start("certificate files", self._listen(files))

    async def _listen(self, files: list[Path]) -> None:
        try:
            async for _ in self._watch(files):
                self._wake.set()
        except OSError as error:
            self._log.warning("certificate files can't be watched; they are looked at every second", reason=str(error))
        self._wake.set()

    def _known(self) -> dict[_Pair, _Stamp | None]:
        return {pair: state.judged for pair, state in self._states.items()}

    @staticmethod
    def _look(known: Mapping[_Pair, _Stamp | None]) -> list[_Finding]:
        """Read the pairs whose stamps are not the ones known. Touches nothing of the object: runs in a thread."""
        findings = []
        for pair, judged in known.items():
            stamp = _stamp(pair)
            if stamp != judged:
                result: Certificate | str
                try:
                    result = load_certificate(*pair)
                except MaterialError as error:
                    result = str(error)
                if _stamp(pair) != stamp:
                    result = f"{pair[0]}: is being written"
                findings.append(_Finding(pair, stamp, result))
        return findings

    def _judge(self, findings: list[_Finding], now: float) -> float | None:
        due: float | None = None
        findings = [finding for finding in findings if finding.pair in self._states]  # a reload may have come in between
        refused = self._use(findings)
        for finding in findings:
            state = self._states[finding.pair]
            problem = refused.get(finding.pair)
            if problem is None:
                state.judged, state.broken = finding.stamp, None
                continue
            if state.broken != finding.stamp:
                state.broken, state.settled_at = finding.stamp, now + SETTLE
            if now < state.settled_at:
                due = state.settled_at if due is None else min(due, state.settled_at)
                continue
            state.judged, state.broken = finding.stamp, None
            self._log.error("certificate not updated, the present one stays in use", domains=list(state.domains), reason=problem)
            for domain in state.domains:
                self._failures.cell(domain).value += 1
        return due

    def _use(self, findings: list[_Finding]) -> dict[_Pair, str]:
        """Publish what was found; gives what could not be, and why."""
        refused: dict[_Pair, str] = {}
        good: dict[_Pair, Certificate] = {}
        for finding in findings:
            result = finding.result
            if isinstance(result, str):
                refused[finding.pair] = result
            elif missing := [name for name in self._states[finding.pair].domains if name != "default" and not result.covers(name)]:
                refused[finding.pair] = f"{result.source}: does not cover {', '.join(missing[:20])}"
            else:
                good[finding.pair] = result
        try:
            self._bring(good)
        except ContextError:
            for pair, certificate in good.items():  # one by one, so that a bad one costs no other its renewal
                try:
                    self._bring({pair: certificate})
                except ContextError as error:
                    refused[pair] = str(error)
        return refused

    def _bring(self, certificates: Mapping[_Pair, Certificate]) -> None:
        """Publish certificates together. Raises ContextError, when none is in use."""
        by_domain: dict[str, list[Certificate]] = {}
        for pair, certificate in certificates.items():
            for domain in self._states[pair].domains:
                by_domain.setdefault(domain, []).append(certificate)
        changed = set(self._publish(by_domain)) if by_domain else set()
        for pair, certificate in certificates.items():
            self._states[pair].not_after = certificate.not_after
        for domain, found in by_domain.items():
            self._not_after.cell(domain).value = min(
                state.not_after for state in self._states.values() if domain in state.domains and state.not_after is not None
            )
            if domain in changed:
                self._log.info(f"Updated certificate for domain: {domain}", source="; ".join(certificate.source for certificate in found))
        for pair, certificate in certificates.items():
            if not changed.isdisjoint(self._states[pair].domains):
                for warning in certificate_warnings(certificate, wall_clock()):
                    self._log.warning(warning)


def _stamp(pair: _Pair) -> _Stamp:
    stamps: list[tuple[int, ...] | None] = []
    for file in pair:
        try:
            stat = file.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(stamps)

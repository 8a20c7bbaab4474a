"""One comparison from start to end: servers are started and checked, then asked in turn, and every run goes into the record.

What fails costs its own figures only: it is said, recorded with the reason, and the rest goes on.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench import lookups
from bench.figures import VERSIONS, Run, Runs
from bench.load import connect, h2load, right
from bench.load.h2load import Load, LoadError
from bench.plan import GET_1K, LATENCY, LATENCY_BESIDE, PEER, PRODUCTS, Plan, Workload
from bench.servers import backend
from bench.servers.place import Place, Running, UnavailableError
from bench.servers.variant import PLAIN, Variant
from bench.targets import Target


@dataclass
class Record:
    """What a session found."""

    runs: Runs = field(default_factory=Runs)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a server, or a server on one version, is not in the tables."""
    versions: dict[str, str] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    """As the servers had them, by file name."""


class Session:
    """Measures a plan."""

    def __init__(self, place: Place, plan: Plan, chosen: Iterable[Target], versions: Iterable[str], python: Path) -> None:
        self.place = place
        self.plan = plan
        self.python = python
        self.chosen = list(chosen)
        self.versions = list(versions)
        self.record = Record()
        self.servers: dict[tuple[str, str], Running] = {}
        """By target and version: those that answer right."""
        self.missing: set[tuple[str, str]] = set()
        """Targets and versions that did not come up at the start: they are not tried again."""
        self.began = time.monotonic()

    def measure(self, checkpoint: Callable[[], None]) -> None:
        """All of the plan. *checkpoint* is called after each part: what was found so far can be kept."""
        backend.start(self.place)
        if any(workload.upload for workload in self.plan.workloads):
            backend.start_uploads(self.place)
        self._start(PLAIN, [GET_1K, *(workload for workload in self.plan.workloads if not workload.upload)])
        for part in (self._workloads, self._latency, self._sweeps, self._stop, self._uploads, self._new, self._idle, self._sites):
            part()
            checkpoint()
        self._access_log()
        self._lookups()
        checkpoint()

    # Servers

    def _start(self, variant: Variant, workloads: Iterable[Workload], only: Iterable[str] = ()) -> None:
        """Start the targets (*only* these, if any), and keep those whose answers are right."""
        names = set(only)
        for target in self.chosen:
            if names and target.name not in names:
                continue
            for served, start in target.programs:
                wanted = [version for version in served if version in self.versions and (target.name, version) not in self.missing]
                if not wanted:
                    continue
                try:
                    running = start(self.place, variant)
                except UnavailableError as error:
                    self._leave_out(target, wanted, variant, str(error))
                    continue
                for version in wanted:
                    self._admit(target, version, running, workloads, variant)
            if target.version is not None and target.name not in self.record.versions:
                try:
                    self.record.versions[target.name] = target.version(self.place)
                except (UnavailableError, OSError, ValueError, IndexError) as error:
                    self.record.versions[target.name] = f"unknown ({error})"

    def _admit(self, target: Target, version: str, running: Running, workloads: Iterable[Workload], variant: Variant) -> None:
        try:
            for workload in workloads:
                expected = b"%d\n" % workload.upload if workload.upload else backend.content(workload.size)
                right.check(self.place, running, version, workload.path, expected, host=variant.asked, upload=self._upload(workload))
        except UnavailableError as error:
            self._leave_out(target, [version], variant, str(error))
        else:
            self.servers[target.name, version] = running

    def _leave_out(self, target: Target, versions: list[str], variant: Variant, why: str) -> None:
        name = f"{target.title}: {', '.join(VERSIONS[version] for version in versions)}{variant}"
        self.record.left_out[name] = why
        if variant == PLAIN:
            self.missing.update((target.name, version) for version in versions)
        self._say(f"{name} is left out: {why}")

    def _stop(self) -> None:
        """End the servers, and keep their configurations for the record: of each the first that was started."""
        for path in sorted(self.place.folder.rglob("*")):
            if path.suffix in {".conf", ".cfg", ".caddyfile", ".json", ".yaml", ".toml"} and path.stat().st_size < 100_000:
                name = f"{path.parent.name}.yaml" if path.name == "qproxy.yaml" else path.name
                kind = name.split(".", maxsplit=1)[0].rstrip("0123456789").rstrip("-") + path.suffix
                self.record.configurations.setdefault(kind, path.read_text())
        for running in {id(running): running for running in self.servers.values()}.values():
            self.place.stop(running.process)
        self.servers.clear()

    # Parts

    def _workloads(self) -> None:
        files = [workload for workload in self.plan.workloads if not workload.upload]
        for number in range(self.plan.rounds):
            for workload in files:
                for version in self.versions:
                    self._each(workload, version, number)

    def _uploads(self) -> None:
        for workload in self.plan.workloads:
            if workload.upload:
                self._start(Variant(uploads=True), [workload])
                for number in range(self.plan.rounds):
                    for version in self.versions:
                        self._each(workload, version, number)
                self._stop()

    def _sweeps(self) -> None:
        for workload in self.plan.sweeps:
            for version in self.versions:
                if version != "h1" or workload.name.startswith("connections"):
                    self._each(workload, version, 0)

    def _latency(self) -> None:
        """Whoever is the subject of a bar is asked in each round: one hiccup of the machine decides a p99."""
        for number in range(self.plan.rounds):
            for version in self.versions:
                for target, running in self._serving(version, LATENCY.name):
                    best = self.record.runs.median("get-1k", version, target)
                    if best is not None and target in (self.plan.latency_targets or [target]):
                        self._open_loop(LATENCY, version, (target, running), number, best / 2)
                peers = self.record.runs.median("get-1k", version, PEER)
                for target, running in self._serving(version, LATENCY.name):
                    if peers is not None and target in ("qproxy", PEER):
                        self._open_loop(LATENCY_BESIDE, version, (target, running), number, peers / 2)

    def _open_loop(self, workload: Workload, version: str, served: tuple[str, Running], number: int, rate: float) -> None:
        target, running = served
        load = self._load(workload, version, rate=rate)
        self._run(workload.name, version, target, number, lambda: h2load.run(self.place, running, load))

    def _new(self) -> None:
        if not self.plan.new:
            return
        self._start(PLAIN, [GET_1K])
        for version in self.versions:
            if version == "h2":
                continue  # the handshake is that of h1
            for target, running in self._serving(version, "new"):
                for workload, resume in (("new", False), ("resumed", True)):
                    ask = lambda running=running, version=version, resume=resume: connect.new(  # noqa: E731  # a name for the line's length
                        self.place, running, version, self.plan.new, resume=resume
                    )
                    self._run(workload, version, target, 0, ask)
        self._stop()

    def _idle(self) -> None:
        """Each on a fresh server, so that no memory that was freed before hides the growth."""
        if not self.plan.idle:
            return
        versions = list(self.versions)
        for target in self.chosen:
            if not target.takes("idle") or target.name not in (self.plan.idle_targets or [target.name]):
                continue
            for version in versions:
                self.versions = [version]
                self._start(PLAIN, [GET_1K], [target.name])
                for name, running in self._serving(version, "idle"):
                    ask = lambda running=running, version=version: connect.idle(self.place, running, version, self.plan.idle)  # noqa: E731
                    self._run("idle", version, name, 0, ask)
                self._stop()
        self.versions = versions

    def _sites(self) -> None:
        for number in self.plan.sites:
            variant = Variant(sites=number)
            self._start(variant, [GET_1K], ["qproxy", "before", "qproxy-portable", "nginx", "haproxy", "caddy"])
            for round_number in range(self.plan.rounds):
                for version in self.versions:
                    self._each(GET_1K, version, round_number, name=f"sites-{number}", host=variant.asked)
            self._stop()

    def _access_log(self) -> None:
        if not self.plan.access_log:
            return
        self._start(Variant(access_log=True), [GET_1K], PRODUCTS)
        for number in range(self.plan.rounds):
            for version in self.versions:
                self._each(GET_1K, version, number, name="access-log")
        self._stop()

    def _lookups(self) -> None:
        self._run("lookups", "h1", "qproxy", 0, lambda: lookups.measure(self.python))

    # One run

    def _each(self, workload: Workload, version: str, number: int, *, name: str = "", host: str = PLAIN.asked) -> None:
        load = self._load(workload, version, host=host)
        for target, running in self._serving(version, name or workload.name):
            ask = lambda running=running: h2load.run(self.place, running, load)  # noqa: E731
            self._run(name or workload.name, version, target, number, ask)

    def _serving(self, version: str, workload: str) -> list[tuple[str, Running]]:
        """Those that are up for *version* and are asked for *workload*."""
        asked = {target.name for target in self.chosen if target.takes(workload)}
        return [(target, running) for (target, served), running in self.servers.items() if served == version and target in asked]

    def _load(self, workload: Workload, version: str, *, host: str = PLAIN.asked, rate: float = 0.0) -> Load:
        return Load(
            version,
            workload.path,
            workload.size,
            workload.connections,
            1 if version == "h1" else workload.streams,
            self.plan.latency_seconds if rate else self.plan.seconds,
            host,
            self._upload(workload),
            rate,
            workload.warm_up,
        )

    def _upload(self, workload: Workload) -> Path | None:
        return backend.body(self.place.folder, "/1m") if workload.upload else None

    def _run(self, workload: str, version: str, target: str, number: int, ask: Callable[[], dict[str, float]]) -> None:
        """One run into the record, whatever comes of it."""
        try:
            run = Run(workload, version, target, number, ask())
        except (LoadError, UnavailableError) as error:
            run = Run(workload, version, target, number, error=str(error))
        except Exception as error:  # noqa: BLE001  # an hour of figures is not lost to one that can't be had
            run = Run(workload, version, target, number, error=repr(error))
        self.record.runs.add(run)
        told = run.error or ", ".join(
            f"{name} {value:,.2f}" if value < 100 else f"{name} {value:,.0f}" for name, value in run.figures.items()
        )
        self._say(f"{workload:16} {number + 1} {VERSIONS[version]:8} {target:16} {told}")

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {what}", flush=True)

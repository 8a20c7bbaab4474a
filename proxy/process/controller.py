"""What steers the workers: the configuration and its reloads, certificates, probes of backends, the admin API.

Knows the files and the team (``team.py``); no request comes by here. A configuration that is wrong changes nothing, and is told of.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from balancer.pool import Pool as BalancerPool
from proxy.answers import DRAINING, NO_WORKER, OVERLOADED, POOLS_DOWN, READY
from proxy.config.compile_pool import service_of
from proxy.config.diff import Changes, diff, in_use, needing_restart, outside
from proxy.config.load import ConfigError, Configuration, configuration_folders, files_of, load
from proxy.config.model_server import ServerHealth
from proxy.config.watch import folders_of, watch_read
from proxy.control.admin import Admin, ConfigStatus, Found, Views
from proxy.control.certificates import CertificateRefresher
from proxy.control.health_port import HealthPort, Page
from proxy.control.health_thread import HealthThread
from proxy.control.metrics import Exposition
from proxy.control.probe import Prober
from proxy.listen.tls import ContextError
from proxy.meters import ProxyMetrics
from proxy.observe import Log, Metrics
from proxy.policy.answer import Respond
from proxy.process.naming import Naming
from proxy.process.setup import shown, workers_of
from proxy.process.team import Refused, Team
from proxy.process.worker import StartError
from proxy.readiness import Readiness
from proxy.snapshot import Snapshot
from proxy.tasks import Tasks

ADMIN_TRIES, ADMIN_PAUSE = 100, 0.1
"""For the admin API's port, and seconds in between, where another controller is about to leave it."""


class Controller:
    """One controller. *metrics* and *naming* are its process's."""

    def __init__(  # noqa: PLR0913, PLR0917  # what is steered, and what a process has
        self, config: Path, configuration: Configuration, team: Team, metrics: Metrics, log: Log, naming: Naming
    ) -> None:
        self._config = config
        self._configuration = configuration
        self._team = team
        self._metrics = metrics
        self._log = log
        self._meters = ProxyMetrics(metrics)
        self._tasks = Tasks(log)
        self._generations = count(team.snapshot.generation + 1)
        self._naming = naming
        self._prober = Prober(team.snapshot.pools, log, metrics, naming.resolver, clock=time.monotonic)
        naming.discovery.changed.append(lambda _: self._prober.replace(team.snapshot.pools))
        self._refresher = CertificateRefresher(configuration.certificate_files, team.publish_certificates, log, metrics)
        self._readiness = Readiness()
        self._loaded_at = self._attempted_at = time.time()
        self._read = configuration.read
        self._watched: Mapping[Path, bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failed = False
        self._problems = [str(warning) for warning in configuration.warnings]
        self._reloading = self._reload_wanted = self._stopping = False
        self._comparing = asyncio.Lock()
        self.reload_begins: Callable[[], None] = _nothing
        """Told as a reload begins."""
        self.reload_ended: Callable[[], None] = _nothing
        """Told when it has ended, one way or the other."""
        self.say_health: Callable[[], None] = _nothing
        """To be called where the health answer has become another one, so that whoever checks has it at once."""

    async def start(self, stack: contextlib.AsyncExitStack, *, wait_for_admin: bool = False) -> None:
        """Begin everything that goes on by itself; *stack* ends it. Raises StartError.

        *wait_for_admin*: a controller before this one may still have the admin API's port, and give it up in a moment.
        """
        stack.push_async_callback(self._tasks.close)
        await self._naming.begin(self._team.snapshot.pools)
        if self._team.snapshot.admin is not None:
            self._metrics.before_read.append(self._meters.show_pools(self._balancers))
        if wait_for_admin:
            self._tasks.start("admin API", self._start_admin_later(stack))
        else:
            await self._start_admin(stack)
        await self._start_health(stack, again=wait_for_admin)
        await self._prober.start()
        stack.push_async_callback(self._prober.stop)
        self._tasks.start("watch certificates", self._refresher.run())
        self._watch()

    def say_warnings(self) -> None:
        """Those of the configuration, into the log."""
        for warning in self._configuration.warnings:
            self._log.warning("configuration", problem=str(warning))

    async def _start_admin_later(self, stack: contextlib.AsyncExitStack) -> None:
        for again in range(ADMIN_TRIES):
            try:
                await self._start_admin(stack)
            except StartError as error:
                if again == ADMIN_TRIES - 1:
                    self._log.error("no admin API", reason=str(error))  # the reason says it all
                await asyncio.sleep(ADMIN_PAUSE)
            else:
                return

    async def _start_admin(self, stack: contextlib.AsyncExitStack) -> None:
        address = self._team.snapshot.admin
        if address is None:
            return
        views = Views(
            readings=self._team.readings,
            exposition=Exposition(),
            draining=lambda: self._team.draining,
            pools=self._balancers,
            last_probe=self._prober.last_probe,
            addresses=self._found,
            services=self._services,
            config=self._status,
            changes=self.compare,
        )
        admin = Admin(address, views, self._log)
        try:
            await admin.start()
        except OSError as error:
            msg = f"can't open the admin API on {shown(address)}: {os.strerror(error.errno or 0)}"
            raise StartError(msg) from None
        stack.push_async_callback(admin.stop)

    async def _start_health(self, stack: contextlib.AsyncExitStack, *, again: bool) -> None:
        """The plain port, where there is to be one. *again*: as with the admin API, it may be given up only in a moment."""
        health = self._configuration.server.health
        if not isinstance(health, ServerHealth) or health.address is None:
            return
        page = Page(lambda: self._team.snapshot.health_path, self._health)
        port: HealthPort | HealthThread
        if self._team.is_here:
            port = beside = HealthThread(health.address, page, self._log)
            self.say_health = beside.say
        else:
            port = HealthPort(health.address, page, self._log)
        for tries_left in reversed(range(ADMIN_TRIES if again else 1)):
            try:
                await port.start()
                break
            except OSError as error:
                if not tries_left:
                    msg = f"can't listen on {shown(health.address)} (server.health): {os.strerror(error.errno or 0)}"
                    raise StartError(msg) from None
                await asyncio.sleep(ADMIN_PAUSE)
        stack.push_async_callback(port.stop)

    def _health(self) -> Respond:
        team = self._team
        if team.draining:
            return DRAINING
        if not team.workers:
            return NO_WORKER
        if not team.accepting:
            return OVERLOADED
        return READY if self._readiness.enough(team.snapshot, time.monotonic()) else POOLS_DOWN

    def _balancers(self) -> list[BalancerPool]:
        return [pool.balancer for pool in self._team.snapshot.pools.values()]

    def _found(self, pool: str, identity: str) -> Found | None:
        found = self._naming.resolver.shown(self._team.snapshot.pools[pool].endpoints[identity].host)
        return None if found is None else Found(*found)

    def _services(self, pool: str) -> dict[str, str]:
        urls = [member.identity for member in self._team.snapshot.pools[pool].written]
        return {url: self._naming.discovery.words(name) or "" for url in urls if (name := service_of(url))}

    # Reload

    def want_reload(self) -> None:
        """Reload once, and once more for all who want it meanwhile."""
        self._reload_wanted = True
        if not self._reloading and not self._stopping:
            self._reloading = True
            self._tasks.start("reload", self._reload_while_wanted())

    def stop_reloading(self) -> None:
        """The end has begun: what is wanted from now on comes too late."""
        self._stopping = True

    async def _reload_while_wanted(self) -> None:
        try:
            while self._reload_wanted:
                self._reload_wanted = False
                self.reload_begins()
                try:
                    await self._reload()
                finally:
                    self._watched = None
                    self.reload_ended()
        finally:
            self._reloading = False

    async def _reload(self) -> None:
        """The new configuration, or the old one and a word about why. Files are read beside the loop, which serves meanwhile."""
        began = time.time()
        old = self._team.snapshot
        try:
            self._read = read = dict[Path, bytes]()
            configuration = await asyncio.to_thread(load, self._config, os.environ, read=read)
            await self._naming.look_ahead(configuration)
            usable = in_use(self._configuration, configuration, self._workers(configuration))
            new = await self._team.change(usable, next(self._generations))
        except ConfigError as error:
            self._reload_failed(began, [str(problem) for problem in error.problems])
            return
        except (ContextError, Refused) as error:
            self._reload_failed(began, [str(error)])
            return
        except Exception:  # noqa: BLE001  # a fault of ours must not end what serves
            self._log.exception("the reload failed")
            self._reload_failed(began, ["an internal error; the log has more"])
            return
        changes = self._changes(old, configuration, new).lines()
        self._configuration = usable
        self._naming.follow(self._team.snapshot.pools)
        self._prober.replace(self._team.snapshot.pools)
        self._refresher.replace(configuration.certificate_files)
        self._meters.reloads.cell("ok").value += 1
        self._problems = [str(warning) for warning in configuration.warnings]
        self._loaded_at = self._attempted_at = began
        self._failed = False
        self._watch()
        self.say_health()
        self._log.info("configuration reloaded", generation=new.generation, changes=changes, warnings=self._problems)

    def _workers(self, configuration: Configuration) -> int:
        """So many there are after a reload of *configuration*."""
        most = self._team.most_workers
        return min(workers_of(configuration), most) if most else workers_of(self._configuration)

    def _changes(self, old: Snapshot, configuration: Configuration, new: Snapshot) -> Changes:
        """Of *configuration*, which says *new*, where the one in use says *old*."""
        changes = Changes(diff(old, new) + outside(self._configuration, configuration), needing_restart(self._configuration, configuration))
        before, wanted, after = workers_of(self._configuration), workers_of(configuration), self._workers(configuration)
        if after != before:
            changes.reload.append(f"workers: {before} -> {after}")
        if wanted != after:
            changes.restart.append(f"workers: {after} -> {wanted}")
        return changes

    async def compare(self) -> Changes:
        """What the files say now, against the configuration in use. Changes nothing, there or here. Raises ConfigError."""
        async with self._comparing:
            configuration = await asyncio.to_thread(load, self._config, os.environ, keep=False)
            new = await asyncio.to_thread(self._team.compiled, configuration)
        return self._changes(self._team.snapshot, configuration, new)

    def _reload_failed(self, began: float, problems: list[str]) -> None:
        self._attempted_at = began
        self._naming.follow(self._team.snapshot.pools)
        self._meters.reloads.cell("failed").value += 1
        self._failed = True
        self._problems = problems
        for problem in problems:
            self._log.error("the new configuration is wrong; the present one stays", problem=problem)

    # Watch

    def _watch(self) -> None:
        """Begin or end it, as the configuration says."""
        wanted = self._configuration.server.watch
        if wanted and (self._watching is None or self._watching.done()):
            self._watching = self._tasks.start("watch the configuration", self._reload_on_change())
        elif not wanted and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _reload_on_change(self) -> None:
        """What the last attempt has read is what counts, so a file that is wrong is told of once, and tried again when it has changed."""
        try:
            async for now in watch_read(self._watched_folders, self._watched_files):
                if not self._reloading and now != self._expected():
                    self.want_reload()
        except OSError as error:
            self._log.error("the configuration can't be watched; its changes take a reload", reason=str(error))

    def _watched_files(self) -> list[Path]:
        return [*(file.absolute() for file in files_of(self._config)), *self._expected()]

    def _watched_folders(self) -> list[Path]:
        return [*configuration_folders(self._config), *folders_of([self._config, *self._expected()])]

    def _expected(self) -> Mapping[Path, bytes]:
        """What was read last, without what is watched elsewhere, and what the proxy itself has made."""
        if self._watched is not None:
            return self._watched
        state = self._configuration.state.absolute()
        known = {file.absolute() for pair in self._configuration.certificate_files for file in (pair.certificate, pair.key)}
        own = self._configuration.key_file  # may stand in the state folder, and is not made by the proxy
        self._watched = {
            file: content
            for file, content in self._read.items()
            if file not in known and (state not in file.parents or (own is not None and file == own.absolute()))
        }
        return self._watched

    def _status(self) -> ConfigStatus:
        return ConfigStatus(
            generation=self._team.snapshot.generation,
            loaded_at=self._loaded_at,
            last_result="failed" if self._failed else "ok",
            last_attempt_at=self._attempted_at,
            problems=tuple(self._problems),
        )


def _nothing() -> None:
    """Nobody wants to know."""

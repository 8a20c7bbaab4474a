"""What a reload changes, in lines for the log: complete enough to see that it did what was meant, and short.

And what it does not: a few keys of ``server`` stay as they were at the start, until a restart.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from pydantic import BaseModel

from proxy.config.load import Configuration
from proxy.config.model_l4 import L4Listener
from proxy.config.model_server import ConnectionIds, Listener, Server, ServerHealth
from proxy.keys import KeySet, config_id
from proxy.message import Address
from proxy.policy.answer import Redirect, Respond
from proxy.policy.headers import HeaderEdit
from proxy.snapshot import Forward, Pool, Route, Site, Snapshot
from proxy.snapshot import L4Listener as Tier  # beside the model of the same name
from proxy.sni import TlsProfile

ThingT = TypeVar("ThingT")

LIVE = "connection_ids"
"""What of ``quic`` takes effect at once."""

NEEDS_RESTART = ("listeners", "admin", "state", "pin_workers", "user", "log", "engines", "quic", "dns")
"""Keys of ``server`` of which a change, of anything in them but ``LIVE``, takes effect with a restart only; the reference page says so."""

RESTART = "takes effect with a restart only"


@dataclass(frozen=True, slots=True)
class Changes:
    """Of a configuration against the one in use, one line each."""

    reload: list[str]
    """What a reload takes."""
    restart: list[str]
    """What takes a restart."""

    def lines(self) -> list[str]:
        """All of them, for the log."""
        return [*(f"{line}: {RESTART}" for line in self.restart), *self.reload]


def in_use(old: Configuration, new: Configuration, workers: int) -> Configuration:
    """What serves once *new* was loaded where *old* was in use: *new*, with *workers*, and as before in what needs a restart."""
    server = {name: getattr(old.server, name) for name in NEEDS_RESTART}
    server["quic"] = old.server.quic.model_copy(update={LIVE: getattr(new.server.quic, LIVE)})
    server["workers"] = workers
    if isinstance(new.server.health, ServerHealth):
        server["health"] = new.server.health.model_copy(update={"address": _health_address(old)})
    if new.server.cluster is not None:
        server["cluster"] = new.server.cluster.model_copy(update={"address": _envelopes(old)})
    l4 = tuple(_as_bound(listener, new) for listener in old.l4)
    return replace(new, l4=l4, server=new.server.model_copy(update=server), state=old.state, qlog_folder=old.qlog_folder)


def _as_bound(listener: L4Listener, new: Configuration) -> L4Listener:
    """A listener of the tier as *new* has it, with the sockets that it has; as it was, where *new* has it no more."""
    found = next((other for other in new.l4 if other.address == listener.address), listener)
    return found.model_copy(update={"protocols": listener.protocols})


def diff(old: Snapshot, new: Snapshot) -> list[str]:
    """What a reload from *old* to *new* changes; nothing when both say the same."""
    return [
        *_changed("limits", old.limits, new.limits),
        *_changed("timeouts", old.timeouts, new.timeouts),
        *(["overload changed"] if old.overload != new.overload else []),
        *(["trusted_proxies changed"] if old.trusted_proxies != new.trusted_proxies else []),
        *(["server health path changed"] if old.health_path != new.health_path else []),
        *_changed("health", old.required, new.required),
        *_named("site", _sites(old), _sites(new), _site_change),
        *_named("certificate of", _profiles(old), _profiles(new), _profile_change),
        *(["unknown_sni changed"] if old.sni.refuse_unknown != new.sni.refuse_unknown else []),
        *_named("l4 listener", _l4(old), _l4(new), _l4_change),
        *_named("pool", old.pools, new.pools, _pool_change),
    ]


def outside(old: Configuration, new: Configuration) -> list[str]:
    """What a reload changes besides the Snapshot, but for the number of workers, which depends on how the proxy was started."""
    lines = _connection_ids_change(old, new)
    if old.keys != new.keys:
        before, after = _epochs(old.keys), _epochs(new.keys)
        lines.append(f"cluster.keys: {before} -> {after}{', with other keys' if before == after else ''}")
    if _peers(old) != _peers(new):
        lines.append("cluster.peers changed")
    if old.server.watch != new.server.watch:
        lines.append(f"watch {'on' if new.server.watch else 'off'}")
    return lines


def needing_restart(old: Configuration, new: Configuration) -> list[str]:
    """What of *new* would take a restart, where *old* is in use."""
    before, after = old.server, new.server
    listeners, others = _listeners(before), _listeners(after)
    lines = [f"listener {name} added" for name in others if name not in listeners]
    lines += [f"listener {name} removed" for name in listeners if name not in others]
    lines += [f"listener {name} changed" for name in others if name in listeners and others[name] != listeners[name]]
    lines += _l4_sockets(old, new)
    lines += ["admin address changed"] if before.admin != after.admin else []
    lines += ["state folder changed"] if old.state != new.state else []
    lines += ["health.address changed"] if _health_address(old) != _health_address(new) else []
    lines += ["cluster.address changed"] if _envelopes(old) != _envelopes(new) else []
    for name in NEEDS_RESTART:
        one, other = getattr(before, name), getattr(after, name)
        if name in {"listeners", "admin", "state"} or one == other:
            continue
        if not isinstance(other, BaseModel):
            lines.append(f"{name}: {one} -> {other}")
            continue
        pairs = [(key, getattr(one, key), getattr(other, key)) for key in type(other).model_fields]
        lines += [f"{name}.{key}{_from_to(*values)}" for key, *values in pairs if values[0] != values[1] and (name, key) != ("quic", LIVE)]
    return lines


def _health_address(configuration: Configuration) -> Address | None:
    health = configuration.server.health
    return health.address if isinstance(health, ServerHealth) else None


def _l4_sockets(old: Configuration, new: Configuration) -> Iterable[str]:
    before, after = ({_shown(listener.address): set(listener.protocols) for listener in each.l4} for each in (old, new))
    yield from (f"l4 listener {name} added" for name in after if name not in before)
    yield from (f"l4 listener {name} removed" for name in before if name not in after)
    yield from (f"protocols of l4 listener {name} changed" for name in after if name in before and after[name] != before[name])


def _l4(snapshot: Snapshot) -> dict[str, Tier]:
    return {listener.name: listener for listener in snapshot.l4}


def _l4_change(old: Tier, new: Tier) -> str:
    """But for the instances, which are a pool's."""
    keys = ("initial_key", "table_size", "table_lifetime", "connect_timeout", "idle_timeout")
    parts = [f"{key}: {getattr(old, key)} -> {getattr(new, key)}" for key in keys if getattr(old, key) != getattr(new, key)]
    if {name: each.pool.name for name, each in old.sni.items()} != {name: each.pool.name for name, each in new.sni.items()}:
        parts.append("routes changed")
    if _ways(old) != _ways(new):
        parts.append("envelope ports, server IDs or nonces changed")
    return ", ".join(parts)


def _ways(listener: Tier) -> object:
    each = listener.instances
    return each.envelope_port, dict(each.envelope_ports), dict(each.server_ids), each.nonce


def _envelopes(configuration: Configuration) -> Address | None:
    cluster = configuration.server.cluster
    return cluster.address if cluster is not None else None


def _peers(configuration: Configuration) -> object:
    cluster = configuration.server.cluster
    return (cluster.peers, cluster.forward_rate) if cluster is not None and cluster.peers else None


def _listeners(server: Server) -> dict[str, list[Listener]]:
    """By address: one may have TCP there, and another UDP."""
    found: dict[str, list[Listener]] = {}
    for listener in server.listeners:
        found.setdefault(_shown(listener.address), []).append(listener)
    return found


def _epochs(keys: KeySet | None) -> str:
    """As much as may be told of them."""
    return "none" if keys is None else "epochs " + ", ".join(str(key.epoch) for key in keys.keys)


def _shown(address: Address) -> str:
    """As people write it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connection_ids_change(old: Configuration, new: Configuration) -> list[str]:
    before, after = old.server.quic.connection_ids, new.server.quic.connection_ids
    if before == after and old.server_id == new.server_id:
        return []
    line = f"quic.{LIVE} changed"
    if before is not None and after is not None:
        one, other = _configs(old, before), _configs(new, after)
        if one == other:
            line += f", but their configuration ID is {' or '.join(map(str, other))} as before: no balancer can tell old ones from new ones"
    return [line]


def _configs(configuration: Configuration, ids: ConnectionIds) -> list[int]:
    """The configuration IDs of its connection IDs, in the order of their keys."""
    if configuration.keys is None or ids.in_clear:
        return [ids.config]
    return [config_id(key.epoch) for key in configuration.keys.keys]


def _from_to(one: object, other: object) -> str:
    """Of a whole mapping, only that it changed: a key may be in it."""
    return " changed" if isinstance(one, BaseModel) or isinstance(other, BaseModel) else f": {one} -> {other}"


def _named(kind: str, old: Mapping[str, ThingT], new: Mapping[str, ThingT], change: Callable[[ThingT, ThingT], str]) -> Iterable[str]:
    for name in new:
        if name not in old:
            yield f"{kind} {name} added"
        elif what := change(old[name], new[name]):
            yield f"{kind} {name}: {what}"
    for name in old:
        if name not in new:
            yield f"{kind} {name} removed"


def _changed(prefix: str, old: Any, new: Any) -> Iterable[str]:
    """One line for each field of a dataclass that differs."""
    for item in fields(new):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if before == after:
            continue
        if hasattr(after, "__dataclass_fields__"):
            yield from _changed(f"{prefix}.{item.name}", before, after)
        else:
            yield f"{prefix}.{item.name}: {before:g} -> {after:g}"


def _sites(snapshot: Snapshot) -> dict[str, Site]:
    hosts = [*snapshot.exact_hosts.values(), *snapshot.wildcard_hosts.values()]
    return {host.site.name: host.site for host in hosts}


def _site_change(old: Site, new: Site) -> str:
    parts = []
    if old.hosts != new.hosts:
        parts.append("hosts changed")
    if old.health_path != new.health_path:
        parts.append("health path changed")
    if old.client_rule != new.client_rule:
        parts.append("client certificates changed")
    if old.early_data != new.early_data:
        parts.append(f"early data {'on' if new.early_data else 'off'}")
    before, after = [_route_key(route) for route in old.routes.routes], [_route_key(route) for route in new.routes.routes]
    if len(before) != len(after):
        parts.append(f"{len(before)} -> {len(after)} routes")
    elif numbers := [str(number) for number, (one, other) in enumerate(zip(before, after, strict=True), 1) if one != other]:
        parts.append(f"route {', '.join(numbers)} changed")
    return ", ".join(parts)


def _route_key(route: Route) -> tuple[object, ...]:
    """Everything that a route does, comparable: templates by their text, pools by name, no counters."""
    action = route.action
    what: tuple[object, ...]
    if isinstance(action, Forward):
        what = ("pool", action.pool.name, action.rewrite, action.host)
    elif isinstance(action, Redirect):
        what = ("redirect", action.status, action.location.text)
    else:
        assert isinstance(action, Respond)
        what = ("respond", action.status, action.headers, action.body)
    edits = (_edit_key(route.request_headers), _edit_key(route.response_headers))
    return (route.match, what, route.access, *edits, route.timeouts, route.retry, route.body_bytes, route.priority)


def _edit_key(edit: HeaderEdit | None) -> object:
    return None if edit is None else (tuple((name, template.text) for name, template in edit.set), edit.remove)


def _profiles(snapshot: Snapshot) -> dict[str, TlsProfile]:
    table = snapshot.sni
    return {profile.domain: profile for profile in (table.default, *table.exact.values(), *table.wildcard.values())}


def _profile_change(old: TlsProfile, new: TlsProfile) -> str:
    return "changed" if old.certificates != new.certificates else ""


def _pool_change(old: Pool, new: Pool) -> str:
    parts = []
    before, after = ({member.identity: member for member in pool.written} for pool in (old, new))
    if added := [url for url in after if url not in before]:
        parts.append(f"added {', '.join(added)}")
    if removed := [url for url in before if url not in after]:
        parts.append(f"removed {', '.join(removed)}")
    changed = [url for url in after if url in before and before[url] != after[url]]
    if changed:
        parts.append(f"weight or backup changed of {', '.join(changed)}")
    if _settings(old) != _settings(new):
        parts.append("settings changed")
    return ", ".join(parts)


def _settings(pool: Pool) -> tuple[object, ...]:
    tls = pool.tls.fingerprint if pool.tls is not None else None
    return (pool.balancer.settings, pool.key, pool.pins, tls, pool.connections, pool.health)

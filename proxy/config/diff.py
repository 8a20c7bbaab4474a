"""What a reload changed, in lines for the log: complete enough to see that it did what was meant, and short."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import BaseModel

from proxy.config.load import Configuration
from proxy.config.model_server import ConnectionIds
from proxy.policy.answer import Redirect, Respond
from proxy.policy.headers import HeaderEdit
from proxy.snapshot import Forward, Pool, Route, Site, Snapshot
from proxy.sni import TlsProfile

ThingT = TypeVar("ThingT")

LIVE = "connection_ids"
"""What of ``quic`` takes effect at once."""

NEEDS_RESTART = ("listeners", "admin", "state", "workers", "pin_workers", "user", "log", "engines", "quic", "dns")
"""Keys of ``server`` of which a change, of anything in them but ``LIVE``, takes effect with a restart only; the reference page says so."""

RESTART = "takes effect with a restart only"


def diff(old: Snapshot, new: Snapshot) -> list[str]:
    """The changes from *old* to *new*, one line each; nothing when both say the same."""
    return [
        *_restart_changes(old, new),
        *_changed("limits", old.limits, new.limits),
        *_changed("timeouts", old.timeouts, new.timeouts),
        *(["overload changed"] if old.overload != new.overload else []),
        *(["trusted_proxies changed"] if old.trusted_proxies != new.trusted_proxies else []),
        *(["server health path changed"] if old.health_path != new.health_path else []),
        *_named("site", _sites(old), _sites(new), _site_change),
        *_named("certificate of", _profiles(old), _profiles(new), _profile_change),
        *(["unknown_sni changed"] if old.sni.refuse_unknown != new.sni.refuse_unknown else []),
        *_named("pool", old.pools, new.pools, _pool_change),
    ]


def outside(old: Configuration, new: Configuration) -> list[str]:
    """What changed of the configuration besides the Snapshot: only connection IDs take effect before a restart."""
    lines = [f"state folder changed: {RESTART}"] if old.state != new.state else []
    lines += _connection_ids_change(old.server.quic.connection_ids, new.server.quic.connection_ids)
    for name in ("workers", "pin_workers", "user"):
        before, after = getattr(old.server, name), getattr(new.server, name)
        if before != after:
            lines.append(f"{name}: {before} -> {after}: {RESTART}")
    for section in ("log", "engines", "quic", "dns"):
        before, after = getattr(old.server, section), getattr(new.server, section)
        pairs = [(name, getattr(before, name), getattr(after, name)) for name in type(after).model_fields]
        lines += [f"{section}.{name}{_from_to(one, other)}: {RESTART}" for name, one, other in pairs if one != other and name != LIVE]
    return lines


def _connection_ids_change(old: ConnectionIds | None, new: ConnectionIds | None) -> list[str]:
    if old == new:
        return []
    line = f"quic.{LIVE} changed"
    if old is not None and new is not None and old.config == new.config:
        line += f", but their configuration ID is {new.config} as before: no balancer can tell old ones from new ones"
    return [line]


def _from_to(one: object, other: object) -> str:
    """Of a whole mapping, only that it changed: a key may be in it."""
    return " changed" if isinstance(one, BaseModel) or isinstance(other, BaseModel) else f": {one} -> {other}"


def _restart_changes(old: Snapshot, new: Snapshot) -> list[str]:
    before = {listener.name: listener for listener in old.listeners}
    after = {listener.name: listener for listener in new.listeners}
    lines = [f"listener {name} added: {RESTART}" for name in after if name not in before]
    lines += [f"listener {name} removed: {RESTART}" for name in before if name not in after]
    lines += [f"listener {name} changed: {RESTART}" for name in after if name in before and after[name] != before[name]]
    if old.admin != new.admin:
        lines.append(f"admin address changed: {RESTART}")
    return lines


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

"""One site: its routes with everything resolved. A route's rules are laid over its site's, and those over the server's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from proxy.config import model_site
from proxy.counters import Cell
from proxy.observe import Metrics
from proxy.policy.access import Access, Networks
from proxy.policy.answer import Redirect, Respond
from proxy.policy.headers import HeaderEdit
from proxy.policy.rewrite import PathRewrite
from proxy.policy.template import Template
from proxy.route.match import Match
from proxy.route.table import RouteTable
from proxy.snapshot import CLASSES, Forward, Pool, Retry, Route, RouteCounters, Site, Timeouts
from proxy.sni import ClientCertificateRule

NumberT = TypeVar("NumberT", int, float)

DEFAULT_TIMEOUTS = Timeouts(connect=5.0, response=60.0, body_idle=60.0, total=0.0)
DEFAULT_RETRY = Retry(attempts=2, body_bytes=64 * 1024)
VERSIONS = {"HTTP/1.1": "http1", "HTTP/2": "http2", "HTTP/3": "http3"}
STATUS_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""Labels of qproxy_requests_total; ``none``: ended without an answer."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the server says for all sites."""

    health_path: bytes | None
    body_bytes: int


class SiteMeters:
    """The metric families that count by route and by host: the same cells over a reload."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("qproxy_requests_total", "Requests by route and class of status", ("route", "status_class"))
        self._bytes_in = metrics.counter("qproxy_request_bytes_total", "Bytes of request bodies", ("route",))
        self._bytes_out = metrics.counter("qproxy_response_bytes_total", "Bytes of response bodies", ("route",))
        self._seconds = metrics.histogram("qproxy_request_seconds", "Time from a request's head to the end of its answer", ("route",))
        self._by_version = [
            (version, metrics.counter(f"{name}_requests_total", f"{version} requests, by configured host", ("host",)))
            for version, name in VERSIONS.items()
        ]

    def route(self, name: str) -> RouteCounters:
        """The cells of one route."""
        cell = self._requests.cell
        none, first, second, third, fourth, fifth = [cell(name, status) for status in STATUS_CLASSES]
        return RouteCounters(
            statuses=(none, first, second, third, fourth, fifth),
            bytes_in=self._bytes_in.cell(name),
            bytes_out=self._bytes_out.cell(name),
            seconds=self._seconds.cell(name),
        )

    def host(self, pattern: str) -> dict[str, Cell]:
        """The cells of one configured host, by version."""
        return {version: family.cell(pattern) for version, family in self._by_version}


def compile_site(
    model: model_site.Site, pools: Mapping[str, Pool], client_rule: ClientCertificateRule | None, defaults: Defaults, meters: SiteMeters
) -> Site:
    """The site; *pools* has its own as ``site/pool`` and the shared ones by their names."""
    name = model.hosts[0]
    routes = [
        compile_route(f"{name}/{number}", route, model, pools, defaults=defaults, meters=meters)
        for number, route in enumerate(model.routes, 1)
    ]
    health_path = defaults.health_path
    if model.health is not None:
        health_path = model.health.path.encode() if isinstance(model.health, model_site.Health) else None
    return Site(
        name=name,
        hosts=tuple(dict.fromkeys(model.hosts)),
        routes=RouteTable(routes),
        health_path=health_path,
        client_rule=client_rule,
        early_data=model.early_data,
    )


def compile_route(  # noqa: PLR0913  # a route, what it inherits and what it refers to
    name: str, model: model_site.Route, site: model_site.Site, pools: Mapping[str, Pool], *, defaults: Defaults, meters: SiteMeters
) -> Route:
    """One route; *name* is ``site/number``, counted from 1 in the order of the file."""
    return Route(
        name=name,
        match=_match(model.match),
        action=_action(model, site, pools),
        access=_access(model.access, site.access),
        request_headers=_edit(site.headers.request, model.headers.request),
        response_headers=_edit(site.headers.response, model.headers.response),
        timeouts=_timeouts(model.timeouts, site.timeouts),
        retry=_retry(model.retry, site.retry),
        body_bytes=_first(model.limits.body_size, site.limits.body_size, defaults.body_bytes),
        counters=meters.route(name),
        priority=CLASSES.index(model.priority),
    )


def _match(model: model_site.Match) -> Match:
    return Match(
        prefix=model.path.encode() if model.path is not None else None,
        exact=model.exact.encode() if model.exact is not None else None,
        methods=frozenset(method.encode() for method in model.methods),
        headers=tuple((name.lower().encode(), _encoded(value)) for name, value in model.headers.items()),
        query=tuple((name.encode(), _encoded(value)) for name, value in model.query.items()),
    )


def _encoded(value: str | None) -> bytes | None:
    return value.encode() if value is not None else None


def _action(model: model_site.Route, site: model_site.Site, pools: Mapping[str, Pool]) -> Forward | Redirect | Respond:
    if model.pool is not None:
        own = f"{site.hosts[0]}/{model.pool}"
        return Forward(pools[own] if model.pool in site.pools else pools[model.pool], _rewrite(model), _host(model.host))
    if model.redirect is not None:
        return Redirect(model.redirect.status, Template.compile(model.redirect.to))
    assert model.respond is not None
    headers = [(name.lower().encode(), value.encode()) for name, value in model.respond.headers.items()]
    if model.respond.body and not any(name == b"content-type" for name, _ in headers):
        headers.insert(0, (b"content-type", b"text/plain; charset=utf-8"))
    return Respond(model.respond.status, tuple(headers), model.respond.body.encode())


def _rewrite(model: model_site.Route) -> PathRewrite | None:
    if model.strip_prefix is not None:
        return PathRewrite(model.strip_prefix.encode(), b"")
    if model.replace_prefix is not None:
        return PathRewrite(model.replace_prefix.from_.encode(), model.replace_prefix.to.encode())
    return None


def _host(host: str | None) -> bytes | None:
    if host is None or host == "preserve":
        return None
    return b"" if host == "endpoint" else host.encode()


def _access(route: model_site.Access | None, site: model_site.Access | None) -> Access | None:
    """Denials add up; the nearest list of those allowed counts."""
    if route is site is None:
        return None
    rules = [rule for rule in (route, site) if rule is not None]
    allow = next((rule.allow for rule in rules if rule.allow is not None), None)
    deny = [network for rule in rules for network in rule.deny]
    if allow is None and not deny:
        return None
    return Access(Networks(allow) if allow is not None else None, Networks(deny) if deny else None)


def _edit(site: model_site.HeaderEdits, route: model_site.HeaderEdits) -> HeaderEdit | None:
    """The site's edit, then the route's: the later word on a field counts."""
    if not (site.set or site.remove or route.set or route.remove):
        return None
    values: dict[bytes, Template] = {}
    removed: set[bytes] = set()
    for edits in (site, route):
        gone = {name.lower().encode() for name in edits.remove}
        removed |= gone
        for name in gone:
            values.pop(name, None)
        for field, text in edits.set.items():
            values[field.lower().encode()] = Template.compile(text)
            removed.discard(field.lower().encode())
    return HeaderEdit(tuple(values.items()), frozenset(removed)) if values or removed else None


def _timeouts(route: model_site.Timeouts, site: model_site.Timeouts) -> Timeouts:
    if route is site is model_site.NO_TIMEOUTS:
        return DEFAULT_TIMEOUTS
    return Timeouts(
        connect=_first(route.connect, site.connect, DEFAULT_TIMEOUTS.connect),
        response=_first(route.response, site.response, DEFAULT_TIMEOUTS.response),
        body_idle=_first(route.idle, site.idle, DEFAULT_TIMEOUTS.body_idle),
        total=_first(route.total, site.total, DEFAULT_TIMEOUTS.total),
    )


def _retry(route: model_site.Retry, site: model_site.Retry) -> Retry:
    if route is site is model_site.NO_RETRY:
        return DEFAULT_RETRY
    return Retry(
        attempts=_first(route.attempts, site.attempts, DEFAULT_RETRY.attempts),
        body_bytes=_first(route.body, site.body, DEFAULT_RETRY.body_bytes),
    )


def _first(*values: NumberT | None) -> NumberT:
    """The first value that was given; the last one always is."""
    return next(value for value in values if value is not None)

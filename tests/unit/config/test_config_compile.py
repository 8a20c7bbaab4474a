"""The Snapshot that files make, and what a reload keeps and says."""

import itertools
from math import inf

import pytest
from config_folder import SITE, Folder

from balancer.pool import Outcome
from proxy.config.compile import compile_snapshot, with_port
from proxy.config.diff import NEEDS_RESTART, Changes, diff, in_use, needing_restart, outside
from proxy.config.material import self_signed
from proxy.config.model_server import Server
from proxy.observe import Metrics
from proxy.policy.answer import Redirect, Respond
from proxy.policy.key import KeySource
from proxy.policy.rewrite import PathRewrite
from proxy.policy.template import Variables
from proxy.route.match import Match
from proxy.snapshot import HIGH, LOW, NORMAL, Endpoint, Forward, HealthCheck, Overload, Retry, Snapshot, Timeouts, UpstreamConnections

DEFAULT = self_signed(("localhost",))
WORDS = Variables(b"GET", b"https", b"a.example.com", b"/x?y", b"HTTP/2", b"192.0.2.1", b"id")


class Compiler:
    """Compiles text after text, each over the one before when asked to."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.generations = itertools.count(1)

    def __call__(self, text: str, previous: Snapshot | None = None) -> Snapshot:
        self.folder.write(text, "one.yaml")
        return compile_snapshot(
            self.folder.load(),
            metrics=self.metrics,
            secret=b"s" * 32,
            seed=1,
            generation=next(self.generations),
            make_request_id=lambda: b"id",
            default_certificate=DEFAULT,
            previous=previous,
            now=5.0,
        )


@pytest.fixture
def snapshot(folder: Folder) -> Compiler:
    return Compiler(folder)


def routes(text: str) -> str:
    return SITE.replace("[{pool: web}]", text)


def site_of(snapshot: Snapshot, host: bytes = b"a.example.com"):
    found = snapshot.find_host(host)
    assert found is not None
    return found.site


def test_the_server(snapshot):
    made = snapshot(
        SITE
        + """\
server:
  listeners:
    - {address: "[::]:8443", protocols: [h2, h3], public_port: 443}
    - {address: "127.0.0.1:8080", protocols: [http/1.1], proxy_protocol: {from: [10.0.0.0/8]}}
  admin: off
  limits: {connections: 7, connections_per_client: 2, connection_rate: 1.5, streams_per_connection: 3, header_count: 20, header_size: 2KiB}
  timeouts: {handshake: 1s, header: 2s, idle: 3s, drain: 4s, drain_delay: 5s}
  trusted_proxies: [192.0.2.0/24]
  health: {path: /up}
  tls: {unknown_sni: refuse}
"""
    )
    first, second = made.listeners
    assert (first.name, first.protocols, first.public_port) == ("[::]:8443", {"h2", "h3"}, 443)
    assert (first.alt_svc, first.proxy_protocol_from) == (b'h3=":443"; ma=86400', None)
    assert (second.address, second.public_port, second.alt_svc) == (("127.0.0.1", 8080), 8080, None)
    assert second.proxy_protocol_from is not None
    assert "10.1.2.3" in second.proxy_protocol_from
    assert made.admin is None
    limits = made.limits
    assert (limits.connections, limits.connections_per_client, limits.connection_rate, limits.body_bytes) == (7, 2, 1.5, 0)
    assert (limits.engine.streams, limits.engine.header_count, limits.engine.header_bytes) == (3, 20, 2048)
    timeouts = made.timeouts
    assert (timeouts.handshake, timeouts.header, timeouts.idle, timeouts.drain, timeouts.drain_delay) == (1, 2, 3, 4, 5)
    assert "192.0.2.1" in made.trusted_proxies
    assert (made.health_path, site_of(made).health_path) == (b"/up", b"/up")
    assert made.sni.select(None) is None
    assert made.generation == 1


def test_a_port_that_the_system_chose(snapshot):
    (listener,) = snapshot(SITE + "server: {listeners: [{address: '127.0.0.1:0'}]}\n").listeners
    assert listener.alt_svc is None
    bound = with_port(listener, 4711)
    assert (bound.address, bound.public_port, bound.alt_svc) == (("127.0.0.1", 4711), 4711, b'h3=":4711"; ma=86400')
    assert with_port(bound, 1) is bound


def test_hosts_and_sni(snapshot):
    made = snapshot(SITE.replace("[a.example.com]", '[A.example.com, "*.a.example.com"]'))
    site = site_of(made)
    assert (site.name, site.hosts) == ("a.example.com", ("a.example.com", "*.a.example.com"))
    assert site_of(made, b"x.a.example.com") is site
    assert made.find_host(b"y.x.a.example.com") is None
    exact, wild = made.sni.select("a.example.com"), made.sni.select("x.a.example.com")
    assert exact is not None
    assert wild is not None
    assert (exact.domain, wild.domain) == ("a.example.com", "*.a.example.com")
    assert exact.certificate.covers("x.a.example.com")
    unknown = made.sni.select("b.example.com")
    assert unknown is made.sni.default
    assert (unknown.domain, unknown.is_default, unknown.certificate) == ("default", True, DEFAULT)


def test_client_certificates_are_a_rule_of_the_site_and_its_profiles(snapshot, make_pair):
    authority, _ = make_pair("ca", ["ca"])
    made = snapshot(SITE.replace("self_signed: true", "self_signed: true, client_certificates: {ca: ca.pem, mode: request}"))
    rule = site_of(made).client_rule
    assert rule is not None
    assert (rule.ca_pem, rule.required) == (authority.read_bytes(), False)
    profile = made.sni.select("a.example.com")
    assert profile is not None
    assert profile.client_rule == rule


def test_health_can_be_elsewhere_or_off_for_a_site(snapshot):
    assert site_of(snapshot(SITE + "  health: off\n")).health_path is None
    assert site_of(snapshot(SITE + "  health: {path: /live}\n")).health_path == b"/live"
    made = snapshot(SITE + "  health: {path: /live}\nserver: {health: off}\n")
    assert (made.health_path, site_of(made).health_path) == (None, b"/live")


def test_a_route_to_a_pool(snapshot):
    made = snapshot(
        routes(
            """
    - match: {path: /api, methods: [GET, PUT], headers: {X-A: 1, X-B: }, query: {q: v}}
      pool: web
      strip_prefix: /api
      host: endpoint
      timeouts: {connect: 1s, response: 2s, idle: 3s, total: 4s}
      retry: {attempts: 3, body: 1KiB}
      limits: {body_size: 5B}"""
        )
    )
    (route,) = site_of(made).routes.routes
    assert route.name == "a.example.com/1"
    assert route.match == Match(
        prefix=b"/api", methods=frozenset({b"GET", b"PUT"}), headers=((b"x-a", b"1"), (b"x-b", None)), query=((b"q", b"v"),)
    )
    assert route.action == Forward(made.pools["a.example.com/web"], PathRewrite(b"/api", b""), b"")
    assert (route.access, route.request_headers, route.response_headers) == (None, None, None)
    assert (route.timeouts, route.retry, route.body_bytes) == (Timeouts(1, 2, 3, 4), Retry(3, 1024), 5)


def test_defaults_of_a_route(snapshot):
    (route,) = site_of(snapshot(SITE)).routes.routes
    assert route.match == Match()
    assert (route.timeouts, route.retry, route.body_bytes) == (Timeouts(5, 60, 60, 0), Retry(2, 65536), 0)


def test_what_a_route_says_counts_before_its_site_and_that_before_the_server(snapshot):
    text = routes("[{pool: web, timeouts: {connect: 1s}, retry: {attempts: 1}, limits: {body_size: off}}, {match: {path: /b}, pool: web}]")
    text += "  timeouts: {connect: 2s, idle: 3s}\n  retry: {attempts: 4, body: 0}\n  limits: {body_size: 10MB}\n"
    text += "server: {limits: {body_size: 1MB}}\n"
    first, second = site_of(snapshot(text)).routes.routes
    assert (first.timeouts, first.retry, first.body_bytes) == (Timeouts(1, 60, 3, 0), Retry(1, 0), 0)
    assert (second.timeouts, second.retry, second.body_bytes) == (Timeouts(2, 60, 3, 0), Retry(4, 0), 10_000_000)
    (third,) = site_of(snapshot(SITE + "server: {limits: {body_size: 1MB}}\n")).routes.routes
    assert third.body_bytes == 1_000_000


def test_access_denials_add_up_and_the_nearest_allow_list_counts(snapshot):
    text = routes("[{pool: web, access: {allow: [10.0.0.0/8], deny: [10.0.0.1]}}, {match: {path: /b}, pool: web}]")
    text += "  access: {allow: [192.0.2.0/24], deny: [10.0.0.2]}\n"
    first, second = site_of(snapshot(text)).routes.routes
    assert first.access is not None
    assert second.access is not None
    addresses = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1")
    assert [first.access.permits(address) for address in addresses] == [False, False, True, False]
    assert [second.access.permits(address) for address in addresses] == [False, False, False, True]


def test_an_empty_allow_list_lets_nobody_in(snapshot):
    (route,) = site_of(snapshot(routes("[{pool: web, access: {allow: []}}]"))).routes.routes
    assert route.access is not None
    assert not route.access.permits("192.0.2.1")


def test_header_edits_of_site_and_route_merge_and_the_route_has_the_last_word(snapshot):
    text = routes(
        "[{pool: web, headers: {request: {set: {X-A: 'route {host}', X-C: c}, remove: [X-B, X-E]}}}, {match: {path: /b}, pool: web}]"
    )
    text += "  headers: {request: {set: {x-a: site, X-B: b, X-D: d}, remove: [X-C, X-F]}, response: {remove: [Server]}}\n"
    first, second = site_of(snapshot(text)).routes.routes
    given = [(b"x-e", b"1"), (b"x-f", b"1"), (b"x-g", b"1")]
    assert first.request_headers is not None
    assert first.request_headers.apply(given, lambda: WORDS) == [
        (b"x-g", b"1"),
        (b"x-a", b"route a.example.com"),
        (b"x-d", b"d"),
        (b"x-c", b"c"),
    ]
    assert second.request_headers is not None
    assert second.request_headers.apply(given, lambda: WORDS) == [
        (b"x-e", b"1"),
        (b"x-g", b"1"),
        (b"x-a", b"site"),
        (b"x-b", b"b"),
        (b"x-d", b"d"),
    ]
    assert first.response_headers is not None
    assert first.response_headers.apply([(b"server", b"x")], lambda: WORDS) == []


def test_answers_of_our_own(snapshot, folder):
    folder.write("<p>hi</p>\n", "page.html")
    text = routes(
        """
    - {match: {exact: /}, redirect: "https://{host}{path}"}
    - {match: {path: /old}, redirect: {to: /new, status: 302}}
    - {match: {path: /plain}, respond: {body: hi}}
    - {match: {path: /page}, respond: {status: 404, body: !file page.html, headers: {Content-Type: text/html}}}
    - {match: {path: /empty}, respond: {status: 204}}
    - {match: {path: /pool}, pool: web, replace_prefix: {from: /pool, to: /v1}, host: app.internal:8080}"""
    )
    actions = [route.action for route in site_of(snapshot(text)).routes.routes]
    assert isinstance(actions[0], Redirect)
    assert (actions[0].status, actions[0].target(WORDS)) == (308, b"https://a.example.com/x?y")
    assert isinstance(actions[1], Redirect)
    assert (actions[1].status, actions[1].target(WORDS)) == (302, b"/new")
    assert actions[2:5] == [
        Respond(200, ((b"content-type", b"text/plain; charset=utf-8"),), b"hi"),
        Respond(404, ((b"content-type", b"text/html"),), b"<p>hi</p>"),
        Respond(204, (), b""),
    ]
    assert isinstance(actions[5], Forward)
    assert (actions[5].rewrite, actions[5].host) == (PathRewrite(b"/pool", b"/v1"), b"app.internal:8080")


def test_a_pool_with_everything(snapshot):
    made = snapshot(
        SITE.replace(
            '{web: {endpoints: ["http://127.0.0.1:9001"]}}',
            """
    web:
      endpoints:
        - {url: "https://[::1]:8443", weight: 5}
        - {url: "unix:/run/app.sock", backup: true}
      balance: {key: {header: X-User}}
      health: {path: "/h?x=1", host: app.internal, interval: 3s, jitter: 0, timeout: 2s, rise: 4, fall: 5,
               status: [200, 300-399], body: fine}
      passive: {fall: 6}
      panic: true
      retry_budget: {ratio: 0.5, minimum: 1}
      connections: {max_idle: 3, idle_timeout: 4s, lifetime: off}
      tls: {verify: false, server_name: App.internal}""",
        )
    )
    pool = made.pools["a.example.com/web"]
    assert pool.endpoints == {
        "https://[::1]:8443": Endpoint("https://[::1]:8443", secure=True, host="::1", port=8443, unix_path=None),
        "unix:/run/app.sock": Endpoint("unix:/run/app.sock", secure=False, host="localhost", port=0, unix_path="/run/app.sock"),
    }
    assert [(backend.identity, backend.weight, bool(backend.backup)) for backend in pool.balancer.backends] == [
        ("https://[::1]:8443", 5, False),
        ("unix:/run/app.sock", 1, True),
    ]
    settings = pool.balancer.settings
    assert (settings.policy, settings.rise, settings.fall, settings.passive_fall) == ("consistent_hash", 4, 5, 6)
    assert (settings.panic, settings.probed, settings.retry_budget_ratio, settings.retry_budget_min) == (True, True, 0.5, 1.0)
    assert (pool.key, pool.pins) == (KeySource("header", b"x-user"), False)
    assert pool.connections == UpstreamConnections(3, 4.0, inf)
    assert pool.health == HealthCheck("/h?x=1", "app.internal", 3.0, 0.0, 2.0, ((200, 200), (300, 399)), "fine")
    assert pool.tls is not None
    assert pool.tls.server_name == "app.internal"


@pytest.mark.parametrize(
    ("balance", "policy", "key", "pins"),
    [
        ("{}", "consistent_hash", KeySource("connection"), True),
        ("{key: client_address}", "consistent_hash", KeySource("client_address"), True),
        ("{key: path}", "consistent_hash", KeySource("path"), False),
        ("{key: {cookie: Sid}}", "consistent_hash", KeySource("cookie", b"Sid"), False),
        ("{key: {query: Q}}", "consistent_hash", KeySource("query", b"Q"), False),
        ("{policy: round_robin}", "round_robin", KeySource("connection"), False),
    ],
)
def test_balance(snapshot, balance, policy, key, pins):
    pool = snapshot(SITE.replace('9001"]', f'9001"], balance: {balance}')).pools["a.example.com/web"]
    assert (pool.balancer.settings.policy, pool.key, pool.pins) == (policy, key, pins)


def test_passive_can_be_switched_off(snapshot):
    pool = snapshot(SITE.replace('9001"]', '9001"], passive: off, health: off')).pools["a.example.com/web"]
    assert (pool.balancer.settings.passive_fall, pool.balancer.settings.probed, pool.health) == (0, False, None)


def test_shared_pools_keep_their_name_and_are_one(snapshot):
    text = SITE.replace("  pools: {web", "pools: {web")
    text = text.replace("site:\n", "sites:\n- ").replace("\n  ", "\n  ").replace("-   hosts", "- hosts")
    text += "site: {hosts: [b.example.com], tls: {self_signed: true}, routes: [{pool: web}]}\n"
    made = snapshot(text)
    actions = [site_of(made, host).routes.routes[0].action for host in (b"a.example.com", b"b.example.com")]
    assert list(made.pools) == ["web"]
    assert [action.pool for action in actions if isinstance(action, Forward)] == [made.pools["web"]] * 2


def test_counters_are_those_of_the_metrics(snapshot):
    made = snapshot(SITE)
    host = made.exact_hosts[b"a.example.com"]
    host.requests["HTTP/2"].value += 3
    site_of(made).routes.routes[0].counters.statuses[5].value += 2
    again = snapshot(SITE, made)
    assert again.exact_hosts[b"a.example.com"].requests["HTTP/2"].value == 3
    cells = {(family.name, labels): cell for family in snapshot.metrics.collect() for labels, cell in family.cells.items()}
    assert cells["http2_requests_total", ("a.example.com",)].value == 3
    assert cells["qproxy_requests_total", ("a.example.com/1", "5xx")].value == 2
    names = {name for name, _ in cells}
    assert names == {
        "http1_requests_total",
        "http2_requests_total",
        "http3_requests_total",
        "qproxy_requests_total",
        "qproxy_request_bytes_total",
        "qproxy_response_bytes_total",
        "qproxy_request_seconds",
    }


def test_a_reload_keeps_backends_profiles_and_contexts(snapshot):
    text = SITE.replace("http://127.0.0.1:9001", "https://127.0.0.1:9001")
    old = snapshot(text)
    (backend,) = old.pools["a.example.com/web"].balancer.backends
    for _ in range(3):
        old.pools["a.example.com/web"].balancer.report(backend, Outcome.CONNECT_FAILED, 1.0)
    assert backend.state == "down"
    new = snapshot(text.replace('9001"', '9001", "https://127.0.0.1:9002"'), old)
    kept, added = new.pools["a.example.com/web"].balancer.backends
    assert kept is backend
    assert (kept.state, added.state) == ("down", "up")
    assert new.pools["a.example.com/web"].tls is old.pools["a.example.com/web"].tls
    assert new.sni.select("a.example.com") is old.sni.select("a.example.com")
    assert new.sni.default is old.sni.default
    assert diff(old, new) == ["pool a.example.com/web: added https://127.0.0.1:9002"]


def test_what_is_outside_of_the_snapshot_needs_a_restart(folder):
    folder.write(SITE)
    old = folder.load()
    folder.write(SITE + "server: {state: here, log: {level: debug, access: off}, engines: {h2: h2}, quic: {congestion_control: reno}}\n")
    assert needing_restart(old, folder.load()) == [
        "state folder changed",
        "log.level: info -> debug",
        "log.access: True -> False",
        "engines.h2: auto -> h2",
        "quic.congestion_control: auto -> reno",
    ]
    assert outside(old, folder.load()) == outside(old, old) == needing_restart(old, old) == []


def test_what_needs_a_restart_stays_in_use_and_is_told_until_there_was_one(folder):
    folder.write(SITE + "server: {log: {level: info}, quic: {connection_ids: {server_id: 'aa'}}}\n")
    began = folder.load()
    folder.write(
        SITE + "server: {workers: 9, timeouts: {idle: 7s}, log: {level: debug}, pin_workers: true, listeners: [{address: '0.0.0.0:1'}],"
        " state: here, quic: {resumption: off, qlog: {folder: traces, share: 1}, connection_ids: {server_id: 'bb', config: 1, slot: on}}}\n"
    )
    wanted = folder.load()
    for _ in range(2):
        serves = in_use(began, wanted, 3)
        assert (serves.server.workers, serves.server.timeouts.idle, serves.server.log.level) == (3, 7, "info")
        assert (serves.server.listeners, serves.state, serves.qlog_folder) == (began.server.listeners, began.state, None)
        assert (serves.server.quic.resumption, serves.server.quic.connection_ids.config) == (True, 1)
        assert needing_restart(serves, wanted) == [
            "listener 0.0.0.0:1 added",
            "listener 0.0.0.0:8443 removed",
            "state folder changed",
            "pin_workers: False -> True",
            "log.level: info -> debug",
            "quic.resumption: True -> False",
            "quic.qlog changed",
        ]
        began = serves
    assert outside(serves, wanted) == []


def test_listeners_that_share_an_address_are_both_looked_at(folder):
    def with_port(number):
        return SITE + (
            f"server: {{listeners: [{{address: '0.0.0.0:1', protocols: [h2], public_port: {number}}},"
            " {address: '0.0.0.0:1', protocols: [h3]}]}\n"
        )

    folder.write(with_port(5))
    old = folder.load()
    folder.write(with_port(6))
    assert needing_restart(old, folder.load()) == ["listener 0.0.0.0:1 changed"]


def test_the_log_says_which_changes_wait_for_a_restart():
    assert Changes(["pool a added"], ["log.level: info -> debug"]).lines() == [
        "log.level: info -> debug: takes effect with a restart only",
        "pool a added",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{admin: off}", ["admin address changed"]),
        ("{listeners: [{address: '0.0.0.0:8443', public_port: 443}]}", ["listener 0.0.0.0:8443 changed"]),
        ("{user: nobody}", ["user: None -> nobody"]),
        ("{listeners: [{address: '[::]:1'}]}", ["listener [::]:1 added", "listener 0.0.0.0:8443 removed"]),
    ],
)
def test_what_needs_a_restart_in_words(folder, text, told):
    folder.write(SITE)
    old = folder.load()
    folder.write(SITE + f"server: {text}\n")
    assert needing_restart(old, folder.load()) == told


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ("{server_id: 'aa', config: 1}", ["quic.connection_ids changed"]),
        ("{server_id: 'aa', config: 0}", []),
        (
            "{server_id: 'bb', config: 0}",
            ["quic.connection_ids changed, but their configuration ID is 0 as before: no balancer can tell old ones from new ones"],
        ),
        (None, ["quic.connection_ids changed"]),
    ],
)
def test_connection_ids_change_without_a_restart(folder, new, told):
    folder.write(SITE + "server: {quic: {connection_ids: {server_id: 'aa'}}}\n")
    old = folder.load()
    folder.write(SITE + (f"server: {{quic: {{connection_ids: {new}}}}}\n" if new else ""))
    assert outside(old, folder.load()) == told


CHANGES = {
    "nothing": (lambda text: text, []),
    "limits": (
        lambda text: text + "server: {limits: {connections: 5, header_count: 50}}\n",
        ["limits.connections: 10000 -> 5", "limits.engine.header_count: 100 -> 50"],
    ),
    "timeouts": (lambda text: text + "server: {timeouts: {idle: 1s}}\n", ["timeouts.idle: 75 -> 1"]),
    "trusted": (lambda text: text + "server: {trusted_proxies: ['::1']}\n", ["trusted_proxies changed"]),
    "health": (lambda text: text + "server: {health: off}\n", ["server health path changed", "site a.example.com: health path changed"]),
    "required": (
        lambda text: text + "server: {health: {pools_up: 0.5, backends_up: 0.25}}\n",
        ["health.pools: 0 -> 0.5", "health.backends: 0 -> 0.25"],
    ),
    "sni": (lambda text: text + "server: {tls: {unknown_sni: refuse}}\n", ["unknown_sni changed"]),
    "routes": (lambda text: text.replace("{pool: web}", "{pool: web, retry: {attempts: 1}}"), ["site a.example.com: route 1 changed"]),
    "template": (
        lambda text: text.replace("{pool: web}", "{pool: web, headers: {request: {set: {X: '{host}'}}}}"),
        ["site a.example.com: route 1 changed"],
    ),
    "more routes": (
        lambda text: text.replace("{pool: web}", "{pool: web}, {match: {path: /x}, pool: web}"),
        ["site a.example.com: 1 -> 2 routes"],
    ),
    "hosts": (
        lambda text: text.replace("[a.example.com]", "[a.example.com, b.example.com]"),
        ["site a.example.com: hosts changed", "certificate of a.example.com: changed", "certificate of b.example.com added"],
    ),
    "weights": (
        lambda text: text.replace('"http://127.0.0.1:9001"', '{url: "http://127.0.0.1:9001", weight: 9}'),
        ["pool a.example.com/web: weight or backup changed of http://127.0.0.1:9001"],
    ),
    "endpoints": (
        lambda text: text.replace("9001", "9002"),
        ["pool a.example.com/web: added http://127.0.0.1:9002, removed http://127.0.0.1:9001"],
    ),
    "pool": (lambda text: text.replace('9001"]', '9001"], panic: true'), ["pool a.example.com/web: settings changed"]),
    "another site": (
        lambda text: text.replace("a.example.com", "z.example.com"),
        [
            "site z.example.com added",
            "site a.example.com removed",
            "certificate of z.example.com added",
            "certificate of a.example.com removed",
            "pool z.example.com/web added",
            "pool a.example.com/web removed",
        ],
    ),
    "redirect": (
        lambda text: text.replace("{pool: web}", "{pool: web}, {match: {path: /x}, redirect: '{host}'}"),
        ["site a.example.com: 1 -> 2 routes"],
    ),
    "priority": (lambda text: text.replace("{pool: web}", "{pool: web, priority: low}"), ["site a.example.com: route 1 changed"]),
    "overload": (lambda text: text + "server: {overload: {exchanges: 5}}\n", ["overload changed"]),
}


def test_the_port_for_health_takes_a_restart(folder):
    folder.write(SITE)
    old = folder.load()
    folder.write(SITE + "server: {health: {address: '127.0.0.1:8081', pools_up: 0.5}}\n")
    new = folder.load()
    assert needing_restart(old, new) == ["health.address changed"]
    serves = in_use(old, new, 1)
    assert (serves.server.health.address, serves.server.health.pools_up) == (None, 0.5)
    assert needing_restart(serves, new) == ["health.address changed"]


def test_overload_and_classes(snapshot):
    made = snapshot(routes("[{pool: web}, {match: {path: /a}, pool: web, priority: low}, {match: {path: /b}, pool: web, priority: high}]"))
    assert made.overload == Overload(lag=0, memory=None, exchanges=0, header=None)
    assert [route.priority for route in site_of(made).routes.routes] == [NORMAL, LOW, HIGH]
    text = SITE + "server: {overload: {lag: 200ms, memory: 1GiB, exchanges: 500, header: X-Class}}\n"
    assert snapshot(text).overload == Overload(lag=0.2, memory=1024**3, exchanges=500, header=b"x-class")
    assert snapshot(SITE + "server: {overload: {memory: off}}\n").overload.memory == 0


def test_answers_are_compared_by_what_they_say(snapshot):
    text = routes("[{match: {path: /r}, redirect: /a}, {match: {path: /s}, respond: {body: a}}, {pool: web}]")
    old = snapshot(text)
    assert diff(old, snapshot(text, old)) == []
    assert diff(old, snapshot(text.replace("/a}", "/b}").replace("body: a", "body: b"), old)) == ["site a.example.com: route 1, 2 changed"]


def test_another_rule_for_client_certificates(snapshot, make_pair):
    make_pair("ca", ["ca"])
    old = snapshot(SITE)
    new = snapshot(SITE.replace("self_signed: true", "self_signed: true, client_certificates: {ca: ca.pem}"), old)
    assert diff(old, new) == ["site a.example.com: client certificates changed"]
    assert new.sni.select("a.example.com") is not old.sni.select("a.example.com")


@pytest.mark.parametrize("name", CHANGES)
def test_the_difference_in_words(snapshot, name):
    change, expected = CHANGES[name]
    text = routes("[{pool: web}]")
    old = snapshot(text)
    new = snapshot(change(text), old)
    assert diff(old, new) == expected


SERVER_CHANGES = {
    "workers": "3",
    "pin_workers": "true",
    "user": "nobody",
    "listeners": "[{address: '127.0.0.1:9443'}]",
    "admin": "off",
    "state": "elsewhere",
    "cluster": "{key: '0 2026-01-01T00:00:00Z AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE='}",
    "tls": "{unknown_sni: refuse}",
    "limits": "{connections: 7}",
    "overload": "{exchanges: 7}",
    "watch": "true",
    "trusted_proxies": "[10.0.0.0/8]",
    "timeouts": "{idle: 7s}",
    "health": "{path: /other}",
    "dns": "{timeout: 7s}",
    "log": "{level: debug}",
    "engines": "{h2: h2}",
    "quic": "{resumption: off}",
}


@pytest.mark.parametrize("key", Server.model_fields)
def test_what_needs_a_restart_is_listed_and_nothing_else(folder, snapshot, key):
    """A new key of ``server`` has to have its change here. Whether a new number of workers takes a restart, who runs them knows."""
    old, before = snapshot(SITE), folder.load()
    text = SITE + f"server: {{{key}: {SERVER_CHANGES[key]}}}\n"
    new = snapshot(text, old)
    after = folder.load()
    assert bool(needing_restart(before, after)) == (key in NEEDS_RESTART)
    live = diff(old, new) + outside(before, after)
    if key == "state":
        assert live == ["certificate of a.example.com: changed"]  # a self-signed one: another folder has another
    else:
        assert bool(live) == (key not in NEEDS_RESTART and key != "workers")

"""Every kind of mistake: the exact words, at the exact place."""
# ruff: noqa: E501  # a message and its file stand on one line where they can

import pytest

SITE = """\
site:
  hosts: [a.example.com]
  tls: {self_signed: true}
  routes: [{pool: web}]
  pools: {web: {endpoints: ["http://127.0.0.1:9001"]}}
"""
ENDPOINTS = "http://127.0.0.1:9001, https://backend.internal or unix:/run/app.sock"


def server(line: str) -> str:
    return f"{SITE}server:\n  {line}\n"


def route(line: str) -> str:
    return SITE.replace("{pool: web}", line)


def pool(line: str) -> str:
    return SITE.replace('{endpoints: ["http://127.0.0.1:9001"]}', line)


CASES = {
    # keys
    "near miss": (server("listener: []"), "one.yaml:7:3: unknown key 'listener'; perhaps you meant 'listeners'"),
    "no near miss": (
        server("timeouts: {zzz: 1s}"),
        "one.yaml:7:14: unknown key 'zzz'; expected one of handshake, header, idle, connection_age, drain, drain_delay",
    ),
    "top level": (SITE + "zzz: 1\n", "one.yaml:6:1: unknown key 'zzz'; expected one of server, site, sites, pools, l4"),
    "in a list": (route("{pool: web, acces: {}}"), "one.yaml:4:24: unknown key 'acces'; perhaps you meant 'access'"),
    "under a name": (pool("{endpoints: ['http://x'], helth: off}"), "one.yaml:5:42: unknown key 'helth'; perhaps you meant 'health'"),
    "missing": (
        "site: {hosts: [a.example.com], tls: {self_signed: true}}\n",
        "one.yaml:1:7: key 'routes' is missing in 'site'; it is required",
    ),
    "alias from": (
        route("{pool: web, replace_prefix: {form: /a, to: /b}}"),
        "one.yaml:4:40: key 'from' is missing in 'site.routes[0].replace_prefix'; it is required",
        "one.yaml:4:41: unknown key 'form'; perhaps you meant 'from'",
    ),
    # shapes
    "not a mapping": ("- 1\n", "one.yaml:1:1: the file is not valid: got a list, expected a mapping"),
    "a list is due": (
        SITE.replace("[a.example.com]", "a.example.com"),
        "one.yaml:2:10: 'site.hosts' is not valid: got 'a.example.com', expected a list",
    ),
    "a mapping is due": (server("limits: 5"), "one.yaml:7:11: 'server.limits' is not valid: got '5', expected a mapping"),
    "nothing": (server("limits:"), "one.yaml:7:10: 'server.limits' is not valid: got nothing, expected a mapping"),
    "empty list": (SITE.replace("[a.example.com]", "[]"), "one.yaml:2:10: 'site.hosts' is too short: got a list, expected 1 at least"),
    # numbers and switches
    "number": (
        server("limits: {connections: many}"),
        "one.yaml:7:25: 'server.limits.connections' is not valid: got 'many', expected a whole number",
    ),
    "too small": (
        server("limits: {connections: 0}"),
        "one.yaml:7:25: 'server.limits.connections' is too small: got '0', expected 1 or more",
    ),
    "too large": (
        pool("{endpoints: [{url: 'http://x', weight: 257}]}"),
        "one.yaml:5:55: 'site.pools.web.endpoints[0].weight' is too large: got '257', expected 256 at most",
    ),
    "infinite": (
        server("limits: {connection_rate: .inf}"),
        "one.yaml:7:29: 'server.limits.connection_rate' is not valid: got '.inf', expected a number",
    ),
    "switch": (server("log: {access: perhaps}"), "one.yaml:7:17: 'server.log.access' is not valid: got 'perhaps', expected true or false"),
    "word": (
        server("log: {level: infos}"),
        "one.yaml:7:16: 'server.log.level' is not valid: got 'infos', expected one of debug, info, warning, error; perhaps you meant 'info'",
    ),
    # units
    "no unit": (
        server("timeouts: {idle: 75}"),
        "one.yaml:7:20: 'server.timeouts.idle' has no unit: got '75', expected a duration such as 500ms, 30s, 5m or 1h; perhaps you meant '75s'",
    ),
    "other unit": (
        server("timeouts: {idle: 75sec}"),
        (
            "one.yaml:7:20: 'server.timeouts.idle' has an unknown unit: got '75sec', expected a duration such as 500ms, 30s, 5m or 1h; "
            "perhaps you meant '75s'"
        ),
    ),
    "zero": (
        server("timeouts: {idle: 0s}"),
        "one.yaml:7:20: 'server.timeouts.idle' is not valid: got '0s', expected a duration above zero",
    ),
    "endless": (
        server("timeouts: {idle: 900d}"),
        "one.yaml:7:20: 'server.timeouts.idle' is too long: got '900d', expected a duration of 366d at most",
    ),
    "size": (
        server("limits: {body_size: 10M}"),
        (
            "one.yaml:7:23: 'server.limits.body_size' has an unknown unit: got '10M', expected a size such as 512B, 64KiB or 10MB; "
            "perhaps you meant '10MB'"
        ),
    ),
    # names
    "address": (
        server("listeners: [{address: 8443}]"),
        (
            "one.yaml:7:25: 'server.listeners[0].address' is not valid: got '8443', expected an IP address and a port, such as 0.0.0.0:8443 or "
            "[::]:8443; perhaps you meant '0.0.0.0:8443'"
        ),
    ),
    "bare IPv6": (
        server("admin: {address: '::1:9090'}"),
        (
            "one.yaml:7:20: 'server.admin.address' is not valid: got '::1:9090', expected an IP address and a port, such as 0.0.0.0:8443 or "
            "[::]:8443; perhaps you meant '[::1]:9090'"
        ),
    ),
    "cidr": (
        server("trusted_proxies: [10.0.0.1/8]"),
        (
            "one.yaml:7:21: 'server.trusted_proxies[0]' has bits set behind its prefix: got '10.0.0.1/8', expected a network such as 10.0.0.0/8 "
            "or 2001:db8::/32, or one address; perhaps you meant '10.0.0.0/8'"
        ),
    ),
    "host with port": (
        SITE.replace("a.example.com", "'a.example.com:8443'"),
        (
            "one.yaml:2:11: 'site.hosts[0]' has a port; ports belong to server.listeners: got 'a.example.com:8443', expected a host name such as "
            "a.example.com or *.example.com; perhaps you meant 'a.example.com'"
        ),
    ),
    "unicode host": (
        SITE.replace("a.example.com", "bücher.example"),
        (
            "one.yaml:2:11: 'site.hosts[0]' is not in ASCII: got 'bücher.example', expected a host name such as a.example.com or "
            "*.example.com; perhaps you meant 'xn--bcher-kva.example'"
        ),
    ),
    "address as host": (
        SITE.replace("a.example.com", "127.0.0.1"),
        (
            "one.yaml:2:11: 'site.hosts[0]' is an address, for which clients send no SNI: got '127.0.0.1', expected a host name such as "
            "a.example.com or *.example.com"
        ),
    ),
    "path": (
        route("{pool: web, match: {path: api}}"),
        (
            "one.yaml:4:38: 'site.routes[0].match.path' is not valid: got 'api', expected a path that begins with /, such as /api/; "
            "perhaps you meant '/api'"
        ),
    ),
    "dot segments": (
        route("{pool: web, match: {path: /a/%2e./b}}"),
        (
            "one.yaml:4:38: 'site.routes[0].match.path' is not valid: got '/a/%2e./b', expected a path without . and .. segments, since requests "
            "with them are refused"
        ),
    ),
    "method": (
        route("{pool: web, match: {methods: [get]}}"),
        (
            "one.yaml:4:42: 'site.routes[0].match.methods[0]' is in lower case, and methods are case-sensitive: got 'get', expected a method such "
            "as GET; perhaps you meant 'GET'"
        ),
    ),
    "endpoint": (
        pool("{endpoints: [127.0.0.1:9001]}"),
        (
            f"one.yaml:5:29: 'site.pools.web.endpoints[0]' is not valid: got '127.0.0.1:9001', expected an endpoint such as {ENDPOINTS}; "
            "perhaps you meant 'http://127.0.0.1:9001'"
        ),
    ),
    "endpoint with path": (
        pool("{endpoints: ['http://x/app']}"),
        (
            "one.yaml:5:29: 'site.pools.web.endpoints[0]' is not valid: got 'http://x/app', expected an endpoint without path and query; "
            "replace_prefix of a route changes paths; perhaps you meant 'http://x'"
        ),
    ),
    "health address": (
        "server: {health: {address: 8081}}\n",
        (
            "one.yaml:1:28: 'server.health.address' is not valid: got '8081', expected an IP address and a port, such as 0.0.0.0:8443 or [::]:8443; "
            "perhaps you meant '0.0.0.0:8081'"
        ),
    ),
    "share of pools": (
        "server: {health: {pools_up: 50}}\n",
        "one.yaml:1:29: 'server.health.pools_up' is too large: got '50', expected 1.0 at most",
    ),
    "share of backends alone": (
        "server: {health: {backends_up: 0.5}}\n",
        "one.yaml:1:19: 'backends_up' has no effect without 'pools_up'; expected both, or none",
    ),
    "status range": (
        pool("{endpoints: ['http://x'], health: {status: [399-200]}}"),
        (
            "one.yaml:5:60: 'site.pools.web.health.status[0]' is an empty range: got '399-200', expected a status such as 204 or a range such as "
            "200-399; perhaps you meant '200-399'"
        ),
    ),
    "key": (
        pool("{endpoints: ['http://x'], balance: {key: conection}}"),
        (
            "one.yaml:5:57: 'site.pools.web.balance.key' is not valid: got 'conection', expected connection, client_address, path, or one of "
            "{header: NAME}, {cookie: NAME}, {query: NAME}; perhaps you meant 'connection'"
        ),
    ),
    "field name": (
        route("{pool: web, match: {headers: {'a b': 1}}}"),
        "one.yaml:4:42: 'site.routes[0].match.headers.a b' is not valid: got 'a b', expected a name of letters, digits and -",
    ),
    "field that is ours": (
        route("{pool: web, headers: {request: {remove: [Connection]}}}"),
        (
            "one.yaml:4:53: 'site.routes[0].headers.request.remove[0]' can't be set or removed (Connection belongs to the connection, not to the "
            "message: the proxy keeps it itself): got 'Connection', expected the name of a header field that may be changed"
        ),
    ),
    "template": (
        route("{redirect: 'https://{hots}/'}"),
        (
            "one.yaml:4:23: 'site.routes[0].redirect' is not a template (unknown variable {hots}; there are method, scheme, host, path, version, "
            "client_address, request_id, affinity_key, sni, backend): got 'https://{hots}/', expected a text, in which {host}, {path} and other "
            "variables may stand; perhaps you meant '{host}'"
        ),
    ),
    # what goes together
    "no action": (route("{match: {path: /}}"), "one.yaml:4:12: this route has none; expected exactly one of pool, redirect, respond"),
    "two actions": (
        route("{pool: web, redirect: /}"),
        "one.yaml:4:24: this route has pool and redirect; expected exactly one of pool, redirect, respond",
    ),
    "useless": (
        route("{redirect: /, retry: {attempts: 3}}"),
        "one.yaml:4:26: 'retry' has no effect without 'pool'; expected it on routes to a pool",
    ),
    "two paths": (
        route("{pool: web, match: {path: /, exact: /a}}"),
        "one.yaml:4:41: 'path' and 'exact' exclude each other; expected one of the two",
    ),
    "field set twice": (
        route("{pool: web, headers: {request: {set: {X-A: 1, x-a: 2}}}}"),
        "one.yaml:4:58: field 'x-a' is set twice (case does not count): first as 'X-A'",
    ),
    "body of 204": (
        route("{respond: {status: 204, body: x}}"),
        "one.yaml:4:36: status 204 has no body (RFC 9110, section 15); expected no 'body', or another status",
    ),
    "redirect status": (
        route("{redirect: {to: /, status: 300}}"),
        "one.yaml:4:39: 'site.routes[0].redirect.status' is not valid: got '300', expected one of 301, 302, 303, 307, 308; perhaps you meant '308'",
    ),
    "key of another policy": (
        pool("{endpoints: ['http://x'], balance: {policy: random, key: path}}"),
        "one.yaml:5:68: 'key' has no effect with policy random; expected no key, or policy consistent_hash",
    ),
    "endpoint twice": (
        pool("{endpoints: ['http://x', 'http://X:80/']}"),
        "one.yaml:5:41: endpoint http://x stands twice in this pool; expected each once (use weight)",
    ),
    "only backups": (
        pool("{endpoints: [{url: 'http://x', backup: true}]}"),
        "one.yaml:5:17: all endpoints are backups; expected one at least that is not",
    ),
    "tls without https": (
        pool("{endpoints: ['http://x'], tls: {verify: false}}"),
        "one.yaml:5:42: 'tls' has no effect: no endpoint of the pool is https://",
    ),
    "key without certificate": (server("tls: {key: x.key}"), "one.yaml:7:9: 'key' stands without 'certificate'; expected both, or none"),
    "two sources": (
        SITE.replace("self_signed: true", "self_signed: true, certificate: x.pem"),
        "one.yaml:3:9: 'self_signed' and 'certificate' exclude each other; expected one of the two",
    ),
    "too much to keep": (
        route("{pool: web, retry: {body: 1GiB}}"),
        "one.yaml:4:32: 'body' is more than a request may keep in memory; expected 16MiB at most",
    ),
    "udp only": (
        server("listeners: [{address: '0.0.0.0:1', protocols: [h3], proxy_protocol: {from: [10.0.0.0/8]}}]"),
        "one.yaml:7:55: 'proxy_protocol' has no effect without http/1.1 or h2: it works on TCP",
    ),
    # references
    "unknown pool": (route("{pool: wbe}"), "one.yaml:4:19: unknown pool 'wbe'; perhaps you meant 'web'"),
    "unlike any pool": (route("{pool: other}"), "one.yaml:4:19: unknown pool 'other'; expected one of web"),
    "listener twice": (
        server("listeners: [{address: '0.0.0.0:443'}, {address: '0.0.0.0:443', protocols: [h3]}]"),
        "one.yaml:7:51: address 0.0.0.0:443 stands twice; it is at one.yaml:7:25 already",
    ),
    "admin on a listener": (
        server("{listeners: [{address: '127.0.0.1:443'}], admin: {address: '127.0.0.1:443'}}"),
        "one.yaml:7:62: address 127.0.0.1:443 stands twice; it is at one.yaml:7:26 already",
    ),
    "health checks on a listener": (
        server("{listeners: [{address: '0.0.0.0:443'}], health: {address: '0.0.0.0:443'}}"),
        "one.yaml:7:61: address 0.0.0.0:443 stands twice; it is at one.yaml:7:26 already",
    ),
    "health checks on the admin address": (
        server("{listeners: [{address: '0.0.0.0:443'}], admin: {address: '127.0.0.1:9'}, health: {address: '127.0.0.1:9'}}"),
        "one.yaml:7:94: address 127.0.0.1:9 stands twice; it is at one.yaml:7:60 already",
    ),
    "host twice": (
        SITE.replace("[a.example.com]", "[a.example.com, A.example.com]"),
        "one.yaml:2:26: host 'a.example.com' stands twice; it is at one.yaml:2:11 already",
    ),
    "shared and own pool": (
        SITE + "pools: {web: {endpoints: ['http://x']}}\n",
        "one.yaml:5:11: pool 'web' stands twice; it is at one.yaml:6:9 already",
    ),
    # certificates
    "no certificate": (
        SITE.replace("  tls: {self_signed: true}\n", ""),
        (
            "one.yaml:2:3: the site has no certificate, and server.tls has none either; expected 'tls: {certificate: FILE, key: FILE}', or "
            "'tls: {self_signed: true}' for tests"
        ),
    ),
    "certificate not there": (
        SITE.replace("self_signed: true", "certificate: x.pem"),
        "one.yaml:3:22: x.pem: can't be read: No such file or directory",
    ),
    "authority not there": (
        pool("{endpoints: ['https://x'], tls: {ca: x.pem}}"),
        "one.yaml:5:53: x.pem: can't be read: No such file or directory",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_says_what_is_wrong_where_it_stands(folder, name):
    text, *expected = CASES[name]
    assert folder.problems(text) == expected


def test_all_mistakes_of_all_files_come_at_once(folder):
    one = server("limits: {connections: many}")
    two = "sites:\n  - {hosts: [b.example.com], tls: {self_signed: true}, routes: [{pool: shraed}]}\npools: {shared: {endpoints: [x]}}\n"
    three = "site: [\n"
    assert folder.problems(one, two, three) == [
        "one.yaml:7:25: 'server.limits.connections' is not valid: got 'many', expected a whole number",
        "three.yaml:2:1: not valid YAML: did not find expected node content (while parsing a flow node)",
        (
            f"two.yaml:3:30: 'pools.shared.endpoints[0]' is not valid: got 'x', expected an endpoint such as {ENDPOINTS}; "
            "perhaps you meant 'http://x'"
        ),
    ]


def test_what_stands_twice_in_two_files_names_both_places(folder):
    one = server("log: {level: info}")
    two = SITE.replace("a.example.com", "b.example.com, a.example.com") + "server: {}\n"
    assert folder.problems(one, two) == [
        "two.yaml:2:26: host 'a.example.com' stands twice; it is at one.yaml:2:11 already",
        "two.yaml:6:1: 'server' stands twice; it is at one.yaml:6:1 already",
    ]


def test_a_secret_is_never_repeated(folder):
    folder.write("hunter2\n", "secret.txt")
    text = server("{limits: {connections: '${TOKEN}'}, trusted_proxies: [!file secret.txt]}")
    problems = folder.problems(text, environ={"TOKEN": "hunter1"})
    assert problems == [
        "one.yaml:7:26: 'server.limits.connections' is not valid: got the content of ${TOKEN}, expected a whole number",
        (
            "one.yaml:7:57: 'server.trusted_proxies[0]' is not valid: got the content of !file secret.txt, expected a network such as 10.0.0.0/8 "
            "or 2001:db8::/32, or one address"
        ),
    ]
    assert "hunter" not in "".join(problems)


def test_a_long_or_raw_value_is_shortened_and_escaped(folder):
    (problem,) = folder.problems(server('log: {level: "' + "x" * 100 + '"}'))
    assert f"got '{'x' * 60}'..., expected" in problem
    (problem,) = folder.problems(server('log: {level: "\\e[31m"}'))
    assert "got '\\x1b[31m', expected" in problem

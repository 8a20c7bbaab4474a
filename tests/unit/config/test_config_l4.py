"""``l4``: what may stand there, what is refused and where it says so, and what becomes of it."""

import pytest
from config_folder import SITE

from balancer.pool import Member
from proxy.config.compile_l4 import addresses_of
from proxy.config.compile_pool import populate
from proxy.config.diff import in_use, needing_restart
from proxy.upstream.names import Service

SHARED = "server: {cluster: {key: '7 2026-01-01T00:00:00Z AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='}}\n"
ONE = 'l4: [{address: "127.0.0.1:443", instances: {endpoints: ["10.0.0.1:8443"], envelope_port: 8444}}]\n'


def entry(rest="", endpoints='"10.0.0.1:8443"', instances="envelope_port: 8444", address="127.0.0.1:443"):
    return f'l4: [{{address: "{address}", instances: {{endpoints: [{endpoints}], {instances}}}{rest}}}]\n'


def test_a_tier_needs_neither_listeners_nor_sites(folder):
    folder.write(ONE + SHARED)
    configuration = folder.load()
    assert (configuration.server.listeners, configuration.sites, configuration.warnings) == ([], (), ())
    (listener,) = configuration.l4
    assert (listener.address, listener.protocols, listener.initial_key) == (("127.0.0.1", 443), ["quic", "tcp"], "dcid")
    assert (listener.tables.size, listener.tables.lifetime, listener.instances.health.interval) == (65536, 120, 2)


def test_it_may_stand_beside_sites_and_listeners(folder):
    folder.write(SITE + SHARED.replace("cluster", 'listeners: [{address: "127.0.0.1:8443"}], cluster') + ONE)
    configuration = folder.load()
    assert (len(configuration.server.listeners), len(configuration.sites), len(configuration.l4)) == (1, 1, 1)


def test_addresses_are_normalised(folder):
    folder.write(entry(endpoints='"[2001:DB8::1]:1", "Pods.Internal:2", {address: "10.0.0.1:3", server_id: "0x0a0b", weight: 3}') + SHARED)
    endpoints = folder.load().l4[0].instances.endpoints
    assert [endpoint.address for endpoint in endpoints] == ["tcp://[2001:db8::1]:1", "dns+tcp://pods.internal:2", "tcp://10.0.0.1:3"]
    assert (endpoints[2].server_id, endpoints[2].weight) == (b"\x0a\x0b", 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            entry(endpoints='"http://a:1"'),
            "'l4[0].instances.endpoints[0]' has a scheme: got 'http://a:1', expected an IP address or a host name",
        ),
        (
            entry(endpoints='"10.0.0.1"'),
            "'l4[0].instances.endpoints[0]' is not valid: got '10.0.0.1', expected an IP address or a host name",
        ),
        (entry(endpoints='"10.0.0.1:0"'), "'l4[0].instances.endpoints[0]' is not valid: got '10.0.0.1:0'"),
        (entry(endpoints='"2001:db8::1:8443"'), "'l4[0].instances.endpoints[0]' is not valid"),
        (entry(endpoints=""), "'l4[0].instances.endpoints' is too short: got a list, expected 1 at least"),
        (entry(endpoints='"a:1", "a:1"'), "instance a:1 stands twice; expected each once (use weight)"),
        (entry(endpoints='{address: "a:1", server_id: "01"}'), "'server_id' stands beside a name"),
        (entry(endpoints='{address: "10.0.0.1:1", server_id: "0g"}'), "'l4[0].instances.endpoints[0].server_id' is not valid"),
        (entry(endpoints='{address: "10.0.0.1:1", server_id: ""}'), "'l4[0].instances.endpoints[0].server_id' is too short"),
        (
            entry(endpoints='{address: "10.0.0.1:1", server_id: "01"}, {address: "10.0.0.2:1", server_id: "01"}'),
            "server ID 01 stands twice; expected one for each instance",
        ),
        (
            entry(endpoints='{address: "10.0.0.1:1", server_id: "01"}, {address: "10.0.0.2:1", server_id: "0203"}'),
            "server IDs of several lengths; expected one length, since connection IDs don't tell it",
        ),
        (
            entry(endpoints='{address: "10.0.0.1:1", server_id: "0102030405060708090a0b0c"}'),
            "server IDs of 12 bytes and a nonce of 8 are 20 bytes together, and a connection ID has room for 19",
        ),
        (entry(instances="nonce: 8"), "'envelope_port' is missing, and QUIC travels in envelopes"),
        (entry(instances="envelope_port: 70000"), "'l4[0].instances.envelope_port' is too large"),
        (entry(instances="envelope_port: 1, nonce: 3"), "'l4[0].instances.nonce' is too small"),
        (entry(instances="envelope_port: 1, slow_start: 5"), "'l4[0].instances.slow_start' has no unit"),
        (entry(instances="envelope_port: 1, health: {status: [200]}"), "unknown key 'status'"),
        (entry(", protocols: [h3]"), "'l4[0].protocols[0]' is not valid: got 'h3', expected one of quic, tcp"),
        (entry(", protocols: []"), "'l4[0].protocols' is too short"),
        (entry(", initial_key: scid"), "'l4[0].initial_key' is not valid: got 'scid', expected one of dcid, client_address"),
        (entry(", tables: {size: 0}"), "'l4[0].tables.size' is too small"),
        (entry(", tables: {lifetime: 0s}"), "'l4[0].tables.lifetime' is not valid"),
        (entry(", timeouts: {idle: off}"), "'l4[0].timeouts.idle' is not valid"),
        (
            entry(', protocols: [quic], routes: [{sni: [a.example.com], instances: {endpoints: ["a:1"]}}]'),
            "'routes' has no effect without tcp",
        ),
        (entry(', routes: [{sni: [], instances: {endpoints: ["a:1"]}}]'), "'l4[0].routes[0].sni' is too short"),
        (
            entry(', routes: [{sni: [a.b], instances: {endpoints: ["a:1"]}}, {sni: [c.d, a.b], instances: {endpoints: ["a:1"]}}]'),
            "name 'a.b' stands twice, in route 1 already",
        ),
        ("l4: [{address: '127.0.0.1:443'}]\n", "key 'instances' is missing in 'l4[0]'; it is required"),
        ("l4: {}\n", "'l4' is not valid"),
        ("server: {listeners: []}\n", "'server.listeners' is empty, and there is no 'l4'; expected one listener at least"),
        (
            ONE + SHARED.replace("cluster", 'admin: {address: "127.0.0.1:443"}, cluster'),
            "address 127.0.0.1:443 stands twice; it is at one.yaml:2:",
        ),
        (
            ONE + SHARED.replace("cluster", 'listeners: [{address: "127.0.0.1:443", protocols: [h3]}], cluster'),
            "address 127.0.0.1:443 stands twice; it is at one.yaml:2:",
        ),
        (
            ONE + SHARED.replace("cluster", 'health: {address: "127.0.0.1:443"}, cluster'),
            "address 127.0.0.1:443 stands twice; it is at one.yaml:2:",
        ),
        (
            ONE + SHARED.replace("{key:", '{address: "127.0.0.1:443", key:'),
            "address 127.0.0.1:443 stands twice; it is at one.yaml:2:",
        ),
    ],
)
def test_mistakes_are_told_where_they_stand(folder, text, problem):
    (found,) = folder.problems(text, SHARED if "server:" not in text else "")
    place, _, message = found.partition(": ")
    assert place.startswith(("one.yaml:1:", "one.yaml:2:"))
    assert message.startswith(problem)


def test_tiers_of_several_files_have_addresses_of_their_own(folder):
    assert folder.problems(ONE, ONE + SHARED) == ["two.yaml:1:16: address 127.0.0.1:443 stands twice; it is at one.yaml:1:16 already"]
    folder.write(entry(", protocols: [tcp]"), "one.yaml")
    folder.write(entry(", protocols: [quic]") + SHARED, "two.yaml")
    assert len(folder.load().l4) == 2


def test_a_reload_takes_all_but_addresses_and_protocols(folder):
    folder.write(ONE, "one.yaml")
    folder.write(SHARED, "three.yaml")
    old = folder.load()
    folder.write(entry(", protocols: [tcp], initial_key: client_address"), "one.yaml")
    folder.write(entry(address="127.0.0.1:444"), "two.yaml")
    new = folder.load()
    (listener,) = in_use(old, new, 1).l4
    assert (listener.address, listener.protocols, listener.initial_key) == (("127.0.0.1", 443), ["quic", "tcp"], "client_address")
    assert needing_restart(old, new) == ["l4 listener 127.0.0.1:444 added", "protocols of l4 listener 127.0.0.1:443 changed"]
    folder.write(entry(address="127.0.0.1:445"), "one.yaml")
    assert [listener.address for listener in in_use(old, folder.load(), 1).l4] == [("127.0.0.1", 443)]


def test_a_name_stands_for_all_of_its_addresses(folder):
    folder.write(entry(endpoints='"10.0.0.1:8443", "pods.internal:8443"') + SHARED)
    written = tuple(Member(address) for address in addresses_of(folder.load().l4[0]))
    known = {"pods.internal:8443": [Service(0, "10.0.1.1", 8443, 1), Service(0, "fd00::2", 8443, 1)]}
    members, endpoints = populate(written, lambda name: known[name])
    assert [member.identity for member in members] == ["tcp://10.0.0.1:8443", "tcp://10.0.1.1:8443", "tcp://[fd00::2]:8443"]
    assert [(endpoint.host, endpoint.port) for endpoint in endpoints.values()] == [
        ("10.0.0.1", 8443),
        ("10.0.1.1", 8443),
        ("fd00::2", 8443),
    ]


def test_quic_needs_keys_that_the_instances_have_too(folder):
    expected = (
        "one.yaml:1:6: QUIC travels in envelopes under keys that the instances have too; expected 'server.cluster', or protocols: [tcp]"
    )
    assert folder.problems(ONE) == [expected]
    folder.write(entry(", protocols: [tcp]", instances="weight: 1").replace(", weight: 1", ""), "one.yaml")
    assert folder.load().l4[0].protocols == ["tcp"]

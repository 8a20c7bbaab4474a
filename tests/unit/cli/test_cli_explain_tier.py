"""``qproxy explain`` for an L4 tier: which listener is meant, and what can be said of QUIC."""

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.keys import Key

CLUSTER = f"cluster: {{key: '{Key(9, 1_700_000_009, bytes(32)).line()}'}}"
SITE = "site: {hosts: [a.example.com], tls: {self_signed: true}, routes: [{respond: {status: 200}}]}\n"
POOL = "{envelope_port: 8444, endpoints: ['10.0.0.1:8443', '10.0.0.2:8443']}"


@pytest.fixture
def explained(tmp_path):
    def explain(server, tier, url, protocol="h2", site=""):
        (tmp_path / "one.yaml").write_text(
            f"{site}server: {{admin: off, {CLUSTER}{server}}}\nl4: [{{address: '127.0.0.1:9443', {tier}, instances: {POOL}}}]\n"
        )
        result = CliRunner().invoke(main, ["explain", "-c", str(tmp_path), "--protocol", protocol, url])
        assert result.exit_code == 0, result.output
        return result.output

    return explain


def test_new_quic_connections_by_a_made_up_id_have_no_instance_beforehand(explained):
    said = explained("", "initial_key: dcid", "https://a.example.com:9443/", "h3")
    assert "listener     127.0.0.1:9443 of the L4 tier, over UDP\n" in said
    assert "instances    tcp://10.0.0.1:8443 (up)\n             tcp://10.0.0.2:8443 (up)\n" in said
    assert "*" not in said


def test_by_the_clients_address_quic_and_tcp_come_to_the_same(explained):
    ends = [
        explained("", "initial_key: client_address", "https://a.example.com:9443/", each).partition("key  ")[2] for each in ("h2", "h3")
    ]
    assert ends[0] == ends[1]
    assert "* 1. tcp://10.0.0." in ends[0]
    assert "answer       the instance's\n" in ends[0]


def test_the_port_says_whether_the_tier_is_meant(explained):
    both = ", listeners: [{address: '127.0.0.1:8443'}]"
    for port, meant in (
        (9443, "127.0.0.1:9443 of the L4 tier, over TCP\n"),
        (8443, "127.0.0.1:8443, h2 over TCP\n"),
        (1, "127.0.0.1:8443, h2"),
    ):
        said = explained(both, "protocols: [tcp]", f"https://a.example.com:{port}/", site=SITE)
        assert said.startswith(f"listener     {meant}")
    said = explained("", "protocols: [tcp]", "https://a.example.com:1/")
    assert said.startswith("listener     127.0.0.1:9443 of the L4 tier, over TCP (the first one: none of the tier has port 1)\n")

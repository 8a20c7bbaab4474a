"""What the doctor says of ports: free, qproxy's own, or somebody else's; and of addresses that are not here."""

import os
import socket
from pathlib import Path

import pytest

from proxy.control.doctor.ports import examine_ports, has_address

QPROXY = ["/usr/bin/python3", "/usr/local/bin/qproxy", "-c", "conf.d"]
MODULE = ["python3", "-W", "error", "-m", "proxy", "-c", "conf.d"]


def examined(configuration, machine, **more):
    found = examine_ports(configuration, machine.root, **({"privileged": False, "local": lambda _: True} | more))
    return [(finding.verdict, finding.what, finding.found) for finding in found]


@pytest.fixture
def one(configured):
    """A configuration with one TCP port, at *address*."""
    return lambda address="0.0.0.0:8443", protocols=("h2",): configured(
        {"listeners": [{"address": address, "protocols": list(protocols)}], "admin": "off"}
    )


def test_free_ports(configured, machine):
    assert examined(configured(), machine) == [
        ("ok", "tcp 0.0.0.0:8443", "free"),
        ("ok", "udp 0.0.0.0:8443", "free"),
        ("ok", "tcp 127.0.0.1:9090", "free"),
    ]


def test_the_ports_for_health_checks_and_for_other_instances_are_looked_at_too(configured, machine):
    key = "7 2026-01-01T00:00:00Z AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    server = {"admin": "off", "health": {"address": "0.0.0.0:8081"}, "cluster": {"key": key, "address": "127.0.0.1:8444"}}
    machine.listening("udp", "0100007F:20FC", 77, "07")
    machine.listening("tcp", "00000000:1F91", 78)
    assert examined(configured(server), machine)[2:] == [
        ("warning", "udp 127.0.0.1:8444", "taken; only root may see by whom"),
        ("warning", "tcp 0.0.0.0:8081", "taken; only root may see by whom"),
    ]


def test_whose_a_port_is(one, machine):
    machine.listening("tcp", "00000000:20FB", 77)
    assert examined(one(), machine) == [("warning", "tcp 0.0.0.0:8443", "taken; only root may see by whom")]
    machine.process(12, ["nginx: master process"], 77)
    (finding,) = examine_ports(one(), machine.root, privileged=False, local=lambda _: True)
    assert (finding.verdict, finding.found) == ("failure", "taken by nginx: master process (process 12)")
    assert finding.mend == "kill 12   # or change server.listeners"


@pytest.mark.parametrize("command", [QPROXY, MODULE])
def test_its_own_ports_are_well(one, machine, command):
    machine.listening("tcp", "00000000:20FB", 77)
    machine.process(12, command, 77)
    machine.process(13, command, 78, 77)
    name = command[0].rpartition("/")[2]
    assert examined(one(), machine) == [("ok", "tcp 0.0.0.0:8443", f"in use by {name} (process 12), {name} (process 13)")]
    machine.process(14, ["sidecar", "proxy"], 77)
    assert examined(one(), machine)[0][0] == "failure"


@pytest.mark.parametrize(
    ("table", "there", "wanted", "clash"),
    [
        ("tcp", "0100007F:20FB", "127.0.0.1:8443", True),
        ("tcp", "0100007F:20FB", "127.0.0.2:8443", False),
        ("tcp", "0100007F:20FB", "0.0.0.0:8443", True),
        ("tcp", "0100007F:20FB", "[::]:8443", True),
        ("tcp", "0100007F:20FB", "[::1]:8443", False),
        ("tcp", "0100007F:20FC", "127.0.0.1:8443", False),
        ("tcp", "00000000:20FB", "127.0.0.1:8443", True),
        ("tcp", "00000000:20FB", "[::1]:8443", False),
        ("tcp6", "00000000000000000000000000000000:20FB", "127.0.0.1:8443", True),
        ("tcp6", "00000000000000000000000001000000:20FB", "[::1]:8443", True),
        ("tcp6", "00000000000000000000000001000000:20FB", "127.0.0.1:8443", False),
        ("tcp6", "B80D0120000000000000000001000000:20FB", "[2001:db8::1]:8443", True),
        ("udp", "0100007F:20FB", "127.0.0.1:8443", False),
    ],
)
def test_which_socket_is_in_the_way(one, machine, table, there, wanted, clash):  # noqa: PLR0917
    machine.listening(table, there, 77)
    ((verdict, _, found),) = examined(one(wanted), machine)
    assert (verdict != "ok", found != "free") == (clash, clash)


def test_connections_are_no_listeners_and_udp_has_a_state_of_its_own(one, machine):
    machine.listening("tcp", "0100007F:20FB", 77, state="01")
    machine.listening("udp", "0100007F:20FB", 78, state="01")
    assert {verdict for verdict, *_ in examined(one(protocols=("h2", "h3")), machine)} == {"ok"}
    machine.listening("udp", "0100007F:20FB", 79, state="07")
    assert [verdict for verdict, *_ in examined(one(protocols=("h2", "h3")), machine)] == ["ok", "warning"]


def test_a_low_port_needs_the_right_to_it(one, machine):
    (finding,) = examine_ports(one("0.0.0.0:443"), machine.root, privileged=False, local=lambda _: True)
    assert (finding.verdict, finding.found) == ("failure", "free, but this user may not bind ports below 1024")
    assert finding.mend.startswith("sysctl -w net.ipv4.ip_unprivileged_port_start=443 ")
    assert examined(one("0.0.0.0:443"), machine, privileged=True)[0][0] == "ok"
    machine.set("net/ipv4/ip_unprivileged_port_start", "443")
    assert examined(one("0.0.0.0:443"), machine)[0][0] == "ok"


def test_an_address_that_is_not_here(one, machine):
    assert examined(one("192.0.2.1:8443"), machine, local=has_address) == [
        ("failure", "tcp 192.0.2.1:8443", "this machine has no address 192.0.2.1")
    ]
    assert [has_address(host) for host in ("127.0.0.1", "127.0.0.9", "0.0.0.0", "::", "198.51.100.1", "2001:db8::1")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_tables_that_are_cut_off_or_hold_nonsense_are_passed_over(one, machine):
    machine.listening("tcp", "nonsense", 77)
    machine.listening("tcp", "0100007F:zz", 77)
    (machine.root / "net" / "tcp6").write_text("a\nb c d\n\n")
    (machine.root / "15").write_text("no folder")
    assert examined(one(), machine) == [("ok", "tcp 0.0.0.0:8443", "free")]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system has no /proc")
def test_this_machine(configured):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        configuration = configured({"listeners": [{"address": f"127.0.0.1:{port}", "protocols": ["h2"]}], "admin": "off"})
        (finding,) = examine_ports(configuration, Path("/proc"), privileged=False)
    assert finding.verdict == "failure"
    assert f"(process {os.getpid()})" in finding.found

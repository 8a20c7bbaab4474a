"""What the doctor says of the kernel, of limits and of the clock."""

import base64
import sys

import pytest

from proxy.control.doctor.finding import Finding
from proxy.control.doctor.system import Clock, examine_system, kernel_clock
from tests.unit.control.doctor.conftest import GOOD

RIGHT = Clock(synchronised=True, error=0.01)


def examined(configuration, machine, descriptors=1_000_000, clock=RIGHT, *, force=False):
    return list(examine_system(configuration, machine.root, descriptors, spare=128, clock=lambda: clock, force_buffers=force))


def wrong(findings):
    return [finding for finding in findings if finding.verdict != "ok"]


def test_a_machine_that_is_well(configured, machine):
    findings = examined(configured(), machine)
    assert not wrong(findings)
    assert [(finding.what, finding.found) for finding in findings] == [
        ("net.core.rmem_max", "8388608"),
        ("net.core.wmem_max", "8388608"),
        ("net.ipv4.tcp_ecn", "2"),
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.tcp_fastopen", "3"),
        ("net.ipv4.ip_local_port_range", "1024 65535, 64512 ports"),
        ("file descriptors (hard limit)", "1000000"),
        ("fs.file-max", "9223372036854775807"),
        ("clock", "synchronised, 0.010 s off at most"),
    ]


def test_a_tier_needs_buffers_for_its_datagrams(configured, machine):
    machine.set("net/core/rmem_max", "212992")
    tier = {"address": "127.0.0.1:443", "protocols": ["tcp"], "instances": {"endpoints": ["10.0.0.1:8443"], "envelope_port": 8444}}
    key = "7 2026-01-01T00:00:00Z AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    server = {"listeners": [{"address": "127.0.0.1:8443", "protocols": ["h2"]}], "cluster": {"key": key}}
    assert not wrong(examined(configured(server, l4=[tier]), machine))
    (finding,) = wrong(examined(configured(server, l4=[tier | {"protocols": ["quic"]}]), machine))
    assert (finding.what, finding.found) == ("net.core.rmem_max", "212992")


KEEP = "   # and into /etc/sysctl.d/ to keep it"


@pytest.mark.parametrize(
    ("name", "value", "found", "expected", "mend"),
    [
        ("net/core/rmem_max", "212992", "212992", "4194304 or more", "sysctl -w net.core.rmem_max=4194304"),
        ("net/core/wmem_max", "4194303", "4194303", "4194304 or more", "sysctl -w net.core.wmem_max=4194304"),
        ("net/core/somaxconn", "128", "128", "4096 or more", "sysctl -w net.core.somaxconn=4096"),
        ("net/ipv4/tcp_ecn", "0", "0", "1 or 2", "sysctl -w net.ipv4.tcp_ecn=2"),
        ("net/ipv4/tcp_fastopen", "1", "1", "3: towards backends (1) and for clients (2)", "sysctl -w net.ipv4.tcp_fastopen=3"),
        ("net/ipv4/tcp_fastopen", "1026", "1026", "3: towards backends (1) and for clients (2)", "sysctl -w net.ipv4.tcp_fastopen=1027"),
        ("fs/file-max", "20000", "20000", "20128 or more", "sysctl -w fs.file-max=20128"),
        (
            "net/ipv4/ip_local_port_range",
            "60000\t60999",
            "60000 60999, 1000 ports",
            "10000 ports or more: one for each connection to a backend's address",
            "sysctl -w net.ipv4.ip_local_port_range='50999 65535'",
        ),
    ],
)
def test_a_setting_that_is_too_small_is_warned_of_with_what_mends_it(configured, machine, name, value, found, expected, mend):  # noqa: PLR0917
    machine.set(name, value)
    (finding,) = wrong(examined(configured(), machine))
    area = "limits" if name.startswith("fs") else "kernel"
    assert finding == Finding("warning", area, name.replace("/", "."), found, expected, mend + KEEP)


def test_who_may_have_larger_buffers_is_bound_by_no_setting(configured, machine):
    machine.set("net/core/rmem_max", "212992")
    machine.set("net/core/wmem_max", "212992")
    findings = examined(configured(), machine, force=True)
    assert not wrong(findings)
    assert [(finding.what, finding.found) for finding in findings][:2] == [("net.core.rmem_max", "212992"), ("net.core.wmem_max", "212992")]


def test_what_is_asked_of_the_kernel_is_what_the_configuration_needs(configured, machine):
    for name in ("net/core/rmem_max", "net/core/wmem_max", "net/ipv4/tcp_ecn"):
        machine.set(name, "0")
    tcp = configured({"listeners": [{"address": "127.0.0.1:8443", "protocols": ["h2"]}]})
    assert not wrong(examined(tcp, machine))
    small = configured({"quic": {"receive_buffer": "64KiB", "send_buffer": "64KiB"}, "limits": {"connections": 100}})
    machine.set("net/core/rmem_max", "65536")
    machine.set("net/core/wmem_max", "65535")
    machine.set("net/ipv4/ip_local_port_range", "50000 50099")
    assert [finding.what for finding in wrong(examined(small, machine, 328))] == ["net.core.wmem_max", "net.ipv4.tcp_ecn"]
    (finding,) = (finding for finding in wrong(examined(small, machine, 327)) if finding.area == "limits")
    assert finding.mend == "ulimit -Hn 328   # under systemd: LimitNOFILE=328"


@pytest.mark.parametrize("value", [None, "", "much"])
def test_what_a_system_does_not_tell_is_passed_over(configured, machine, value):
    for name in GOOD:
        machine.set(name, value)
    assert [finding.what for finding in examined(configured(), machine, sys.maxsize, None)] == ["file descriptors (hard limit)", "clock"]


@pytest.mark.parametrize(
    ("clock", "found"),
    [(Clock(synchronised=False, error=16), "not synchronised"), (Clock(synchronised=True, error=2.6), "synchronised, but up to 3 s off")],
)
def test_a_clock_that_may_be_wrong(configured, machine, clock, found):
    (finding,) = wrong(examined(configured(), machine, clock=clock))
    assert (finding.area, finding.found, finding.mend) == ("time", found, "timedatectl set-ntp true")


def test_a_clock_that_shared_keys_go_by(configured, machine):
    key = base64.b64encode(bytes(32)).decode()
    shared = configured({"cluster": {"key": f"0 2026-01-01T00:00:00Z {key}"}})
    (finding,) = wrong(examined(shared, machine, clock=Clock(synchronised=False, error=16)))
    assert finding.found == "not synchronised: the keys of the cluster begin by it, and what is sealed ages by it"


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_this_machines_clock_is_read():
    clock = kernel_clock()
    assert clock is not None
    assert 0 <= clock.error < 1e6

"""Root binds, and somebody else serves: all of the processes, those that are started later too (``server.user``)."""

import os
import pwd
import random
import socket
from pathlib import Path

import pytest
from harness import clients, others
from harness.cli import qproxy
from harness.processes import children, controller, kill, serving, workers

HOST = "a.example.com"
USER = "nobody"

WHY_NOT = others.refused()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def privileged_port():
    """One that only root may bind."""
    for port in random.sample(range(600, 1024), 400):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


def own(folder):
    """Give all of it to the user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, pwd.getpwnam(USER).pw_uid, -1)


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def proxy(request, make_proxy):
    port = privileged_port()
    listeners = [{"address": f"127.0.0.1:{port}", "protocols": ["http/1.1", "h2", "h3"]}]
    proxy = make_proxy(server={"workers": request.param, "user": USER, "listeners": listeners}, open_to_all=True)
    proxy.port = port
    own(proxy.config)
    proxy.start()
    if request.param > 1:
        serving(proxy, request.param)
    return proxy


def identities(proxy):
    """User and group of all processes, and whether any has a group of root's."""
    found = set()
    for pid in (proxy.pid, *children(proxy)):
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        found.add((fields["Uid"], fields["Gid"], "0" in fields["Groups"].split(), int(fields["CapEff"], 16)))
    return found


def theirs():
    entry = pwd.getpwnam(USER)
    return {("\t".join([str(entry.pw_uid)] * 4), "\t".join([str(entry.pw_gid)] * 4), False, 0)}


def answers(authority, proxy):
    with clients.httpx_client(authority) as client:
        return client.get(proxy.url("/hello")).status_code


def test_a_port_of_root_s_is_served_by_somebody_else(authority, proxy):
    assert identities(proxy) == theirs()
    assert answers(authority, proxy) == 200
    state = Path(proxy.server["state"])
    assert {path.owner() for path in (state, *state.rglob("*"))} == {USER}

    proxy.sites[HOST]["headers"] = {"response": {"set": {"X-New": "yes"}}}
    proxy.write()
    own(proxy.config)
    assert qproxy("reload", "-c", proxy.config).code == 0
    with clients.httpx_client(authority) as client:
        assert client.get(proxy.url("/hello")).headers["x-new"] == "yes"

    key = next(proxy.config.rglob("*key*"))
    os.chown(key, 0, 0)
    key.chmod(0o600)
    ran = qproxy("reload", "-c", proxy.config)
    assert ran.code == 2, "root may read it, and says nothing; the proxy may not"
    assert "Permission denied" in ran.err
    own(proxy.config)
    assert answers(authority, proxy) == 200


@pytest.mark.parametrize("proxy", [2], indirect=True)
def test_those_who_are_started_later_are_the_user_s_as_well(authority, proxy):
    kill(workers(proxy)[0])
    kill(controller(proxy))
    proxy.wait_for(lambda: "the controller is back" in proxy.logs(), "has a controller again", 20)
    serving(proxy, 2)
    assert identities(proxy) == theirs()
    before = children(proxy)
    ran = qproxy("upgrade", "-c", proxy.config)
    assert (ran.code, ran.err) == (0, "")
    proxy.wait_for(lambda: not set(before) & set(children(proxy)), "let go of the old ones", 20)
    assert identities(proxy) == theirs()
    assert answers(authority, proxy) == 200
    assert proxy.terminate() == 0

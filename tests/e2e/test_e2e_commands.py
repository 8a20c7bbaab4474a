"""``qproxy reload`` and ``qproxy upgrade``: they find the proxy that runs, and say what came of it."""

import os
import re
import signal
import socket
import ssl
import time
from collections import Counter
from pathlib import Path

import pytest
from harness import clients
from harness.cli import qproxy
from harness.load import Load
from harness.processes import children, controller, gone, holder, kill, serving, workers

HOST = "a.example.com"


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def proxy(request, start_proxy):
    proxy = start_proxy(server={"workers": request.param})
    if request.param > 1:
        serving(proxy, request.param)
    return proxy


def answers_with(authority, proxy, name):
    with clients.httpx_client(authority) as client:
        return client.get(proxy.url()).headers.get(name)


def test_a_reload_is_in_use_when_the_command_ends(authority, proxy):
    for generation in (2, 3):
        proxy.sites[HOST]["headers"] = {"response": {"set": {"X-Generation": str(generation)}}}
        proxy.write()
        ran = qproxy("reload", "-c", proxy.config)
        assert (ran.code, ran.out, ran.err) == (0, f"reloaded: generation {generation}\n", "")
        for _ in range(4):
            assert answers_with(authority, proxy, "x-generation") == str(generation)


def test_a_wrong_configuration_is_told_and_nobody_is_signalled(authority, proxy):
    (proxy.config / "broken.yaml").write_text("site: [")
    ran = qproxy("reload", "-c", proxy.config)
    assert (ran.code, ran.out) == (2, "")
    assert f"{proxy.config}/broken.yaml:2:1: " in ran.err
    assert proxy.metrics().get('qproxy_reloads_total{result="failed"}', 0) == 0


def test_what_only_the_proxy_finds_wrong_is_told_by_lines(authority, proxy):
    """Its environment is its own."""
    (proxy.config / "more.yaml").write_text("pools: {more: {endpoints: ['http://${WHERE}:1']}}\n")
    ran = qproxy("reload", "-c", proxy.config, environment={"WHERE": "127.0.0.1"})
    assert (ran.code, ran.out) == (2, "")
    lines = ran.err.splitlines()
    assert lines[0].startswith(f"{proxy.config}/more.yaml:1:")
    assert "WHERE" in ran.err
    assert lines[-1] == "the configuration of generation 1 stays in use"
    assert proxy.metrics()['qproxy_reloads_total{result="failed"}'] == 1
    assert answers_with(authority, proxy, "x-new") is None


def check(proxy, **environment):
    """Its exit code, what it says of the proxy that runs, and its warnings."""
    ran = qproxy("check", "-c", proxy.config, environment=environment)
    lines = ran.out.splitlines()
    summed_up = [line.startswith(f"{proxy.config}: right, ") for line in lines].index(True)
    return ran.code, lines[summed_up + 1 :], ran.err


def takes(proxy, how, changes):
    return [f"the proxy that runs (process {proxy.pid}) takes with {how}:", *(f"  {line}" for line in changes)]


def test_check_says_what_a_reload_changes_and_what_takes_a_restart(authority, proxy):
    several = proxy.server["workers"] > 1
    who = f"the proxy that runs (process {proxy.pid})"
    assert check(proxy) == (0, [f"{who} has this configuration"], "")

    proxy.sites[HOST]["headers"] = {"response": {"set": {"X-New": "yes"}}}
    proxy.server |= {"workers": 3 - proxy.server["workers"], "log": {"level": "debug"}, "timeouts": {"idle": "7s"}}
    proxy.server["listeners"][0]["public_port"] = 443
    proxy.write()
    live = ["timeouts.idle: 75 -> 7", f"site {HOST}: route 1 changed"] + (["workers: 2 -> 1"] if several else [])
    restart = [f"listener 127.0.0.1:{proxy.port} changed", "log.level: info -> debug"] + ([] if several else ["workers: 1 -> 2"])
    assert check(proxy) == (0, takes(proxy, "a reload", live) + takes(proxy, "a restart only", restart), "")
    assert answers_with(authority, proxy, "x-new") is None, "to ask changes nothing"

    (proxy.config / "more.yaml").write_text("pools: {more: {endpoints: ['http://${WHERE}:1']}}\n")
    code, told, warnings = check(proxy, WHERE="127.0.0.1")
    assert (code, told) == (0, [])
    assert f"warning: {who} would refuse it: {proxy.config}/more.yaml:1:" in warnings


def test_what_takes_a_restart_is_told_until_there_was_one(proxy):
    proxy.server |= {"log": {"level": "debug"}, "timeouts": {"idle": "7s"}}
    proxy.write()
    for count in (1, 2):
        proxy.reload(expect="configuration reloaded")
        assert proxy.logs().count('"log.level: info -> debug: takes effect with a restart only"') == count
    if proxy.server["workers"] > 1:
        kill(controller(proxy))  # the next one knows it too
        proxy.wait_for(lambda: "the controller is back" in proxy.logs(), "has a controller again")
    assert check(proxy) == (0, takes(proxy, "a restart only", ["log.level: info -> debug"]), "")
    proxy.terminate()
    assert check(proxy) == (0, [], "")
    proxy.start()
    assert check(proxy) == (0, [f"the proxy that runs (process {proxy.pid}) has this configuration"], "")


@pytest.mark.parametrize("workers", [1, 2])
def test_without_an_admin_api_the_log_tells(start_proxy, workers):
    proxy = start_proxy(server={"workers": workers, "admin": "off"})
    proxy.wait_for(lambda: '"event":"ready"' in proxy.logs(), "is ready")
    ran = qproxy("reload", "-c", proxy.config)
    assert ran.code == 0
    assert ran.out == f"process {proxy.pid} was told to reload; its admin API is off: the log tells what comes of it\n"
    told = qproxy("check", "-c", proxy.config)
    assert told.code == 0
    assert f"warning: the proxy that runs (process {proxy.pid}) has no admin API" in told.err
    proxy.wait_for(lambda: '"event":"configuration reloaded"' in proxy.logs(), "reloaded")


def test_where_nothing_runs_nobody_is_signalled(proxy):
    config, pid = proxy.config, proxy.pid
    proxy.crash()
    (file,) = Path(proxy.server["state"]).glob("pid-*")
    assert f'"pid": {pid}' in file.read_text()
    for command in ("reload", "upgrade"):
        ran = qproxy(command, "-c", config)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == f"qproxy: no proxy with this configuration runs: nobody holds {file}\n"


def test_of_a_proxy_that_drains_nothing_is_wanted(authority, proxy):
    proxy.server["timeouts"] = {"drain_delay": "20s"}
    proxy.write()
    assert qproxy("reload", "-c", proxy.config).code == 0
    os.kill(proxy.pid, signal.SIGTERM)
    proxy.wait_for(lambda: qproxy("reload", "-c", proxy.config).err.startswith("qproxy: no proxy"), "gave its file up")
    os.kill(proxy.pid, signal.SIGTERM)
    assert proxy.wait() == 0


def test_a_second_proxy_on_a_state_folder_has_a_file_of_its_own(make_proxy, proxy):
    other = make_proxy(server={"state": proxy.server["state"]})
    other.start()
    assert len(list(Path(proxy.server["state"]).glob("pid-*"))) == 2
    assert qproxy("reload", "-c", other.config).code == 0
    assert other.logs().count("configuration reloaded") == 1
    assert "configuration reloaded" not in proxy.logs()


def test_one_process_is_not_upgraded_and_lives_on(start_proxy):
    proxy = start_proxy(server={"workers": 1})
    ran = qproxy("upgrade", "-c", proxy.config)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"qproxy: process {proxy.pid} serves alone: only several workers can be upgraded")
    assert proxy.health() == 200


def test_an_upgrade_is_done_when_the_command_ends(authority, start_proxy):
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    before = children(proxy)
    with Load(authority, proxy.port, versions=["HTTP/1.1"], clients=4) as load:
        load.more(20)
        ran = qproxy("upgrade", "-c", proxy.config)
        load.more(20)
    assert (ran.code, ran.out, ran.err) == (0, f"upgraded: process {proxy.pid} has new children\n", "")
    assert not load.lost, load.summary()
    assert Counter(role for pid, role in children(proxy).items() if pid not in before) == {"worker": 2, "controller": 1}
    again = qproxy("upgrade", "-c", proxy.config)
    assert again.code == 0
    assert qproxy("reload", "-c", proxy.config).out == "reloaded: generation 4\n"


def began_to_read(authority, proxy):
    """A client in the middle of an answer."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    client = context.wrap_socket(raw, server_hostname=HOST)
    client.sendall(b"GET /bytes/67108864 HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode())
    assert client.recv(9) == b"HTTP/1.1 "
    return client


def test_an_upgrade_waits_for_old_workers_and_is_forced(authority, start_proxy):
    proxy = start_proxy(server={"workers": 2, "timeouts": {"drain": "90s"}})
    serving(proxy, 2)
    with began_to_read(authority, proxy) as client:
        old = holder(proxy, client.getsockname())
        assert qproxy("upgrade", "-c", proxy.config).code == 0
        proxy.wait_for(lambda: len(workers(proxy)) == 3, "has one old worker only")
        second = children(proxy)

        waits = r"the upgrade waits for 1 old worker with 1 connection, until \d\d:\d\d:\d\d UTC at the latest"
        for _ in range(2):
            ran = qproxy("upgrade", "-c", proxy.config, "--timeout", "1")
            assert (ran.code, ran.err) == (1, "qproxy: no word of the upgrade; its log has more\n")
            assert re.fullmatch(waits + "; with --force they are ended at once\n", ran.out), ran.out
        assert proxy.logs().count('"event":"the upgrade waits') == 1, "who asks again is told, and nobody is signalled again"
        assert children(proxy) == second
        assert client.recv(65536), "what is in progress goes on"

        ran = qproxy("upgrade", "-c", proxy.config, "--force")
        assert (ran.code, ran.err) == (0, "")
        assert re.fullmatch(f"{waits}: they are ended now\nupgraded: process {proxy.pid} has new children\n", ran.out), ran.out
        gone(old)
    serving(proxy, 2)
    assert '"event":"the upgrade is forced: old workers end, with their connections","workers":1,"connections":1' in proxy.logs()
    for number in (signal.SIGUSR1, signal.SIGHUP):
        proxy.process.send_signal(number)
    proxy.wait_for(lambda: "no upgrade waits that could be forced" in proxy.logs(), "said that there is nothing to force")
    proxy.wait_for(lambda: "configuration reloaded" in proxy.logs(), "reloaded")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_one_process_says_that_it_can_not_be_upgraded(start_proxy, number):
    proxy = start_proxy()
    proxy.process.send_signal(number)
    proxy.wait_for(lambda: '"level":"warning","event":"no upgrade: one process' in proxy.logs(), "said so")
    assert proxy.health() == 200


def test_signals_to_all_of_the_processes_are_for_the_supervisor(start_proxy):
    """As from ``systemctl kill``."""
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    before = children(proxy)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        for pid in before:
            os.kill(pid, number)
    assert qproxy("reload", "-c", proxy.config).code == 0
    assert children(proxy) == before
    assert proxy.metric("qproxy_worker_deaths_total") == 0


def test_an_upgrade_that_fails_is_told(start_proxy):
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    before = children(proxy)
    (proxy.config / "more.yaml").write_text("pools: {more: {endpoints: ['http://${WHERE}:1']}}\n")
    ran = qproxy("upgrade", "-c", proxy.config, environment={"WHERE": "127.0.0.1"})
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "the upgrade failed: the new code or the configuration does not pass its check; what served before goes on, and its log has more\n"
    )
    assert children(proxy) == before
    (proxy.config / "more.yaml").unlink()
    assert qproxy("upgrade", "-c", proxy.config).code == 0


def test_a_reload_in_the_middle_of_an_upgrade_ends_nobody(start_proxy):
    """The supervisor becomes the new code, which first has to say that it hears signals."""
    proxy = start_proxy(server={"workers": 2})
    serving(proxy, 2)
    proxy.process.send_signal(signal.SIGUSR2)
    end = time.monotonic() + 30
    while '"event":"upgraded"' not in proxy.logs():
        assert proxy.process.poll() is None, proxy.logs()
        assert time.monotonic() < end, proxy.logs()
        proxy.process.send_signal(signal.SIGHUP)
        time.sleep(0.002)
    assert proxy.health() == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_change_of_the_files_is_a_reload_by_itself(authority, start_proxy, workers):
    proxy = start_proxy(server={"workers": workers, "watch": True})
    if workers > 1:
        serving(proxy, workers)
    reloaded, failed = '"event":"configuration reloaded"', '"event":"the new configuration is wrong'

    def wait(word, count):
        proxy.wait_for(lambda: proxy.logs().count(word) >= count, f"said {word} for the {count}th time")
        assert proxy.logs().count(word) == count

    named = proxy.config / "word.txt"
    named.write_text("one")
    more = proxy.config / "more.yaml"
    site = (
        "site: {hosts: [c.example.com], tls: {self_signed: true}, routes: [{respond: {status: 200, headers: {X-Word: !file word.txt}}}]}\n"
    )
    more.write_text(site)
    wait(reloaded, 1)  # a new file
    named.write_text("two")
    wait(reloaded, 2)  # one that is named
    more.write_text(site[:20])
    wait(failed, 1)  # half written
    assert proxy.health() == 200
    more.write_text(site)
    wait(reloaded, 3)  # whole
    more.unlink()
    wait(reloaded, 4)  # gone
    proxy.server["watch"] = False
    proxy.write()
    wait(reloaded, 5)
    more.write_text(site)
    assert qproxy("reload", "-c", proxy.config).code == 0
    assert (proxy.logs().count(reloaded), proxy.logs().count(failed)) == (6, 1)

"""From files to one configuration: which files, defaults, what warns, where the state is."""

import gc
import os
from pathlib import Path

import pytest
from config_folder import NOW, SITE

from proxy.config.load import ConfigError, files_of, load
from proxy.config.source import read_document


def failure(path, environ=None):
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    assert failure(tmp_path / "no") == f"{tmp_path}/no: does not exist; expected a folder with *.yaml files, or one such file"


def test_a_folder_without_files(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / ".hidden.yaml").write_text("[")
    assert failure(tmp_path) == f"{tmp_path}: holds no *.yaml or *.yml file; expected one at least"


def test_a_path_that_can_not_be_one(tmp_path):
    assert "can't be read" in failure(Path("x\0y")) or "does not exist" in failure(Path("x\0y"))


def test_files_of_all_folders_are_read_in_order_and_hidden_folders_are_not(folder):
    folder.write(SITE, "sites/b.yml")
    folder.write(SITE.replace("a.example.com", "z.example.com"), "a.yaml")
    folder.write("[", "sites/..2030_01/x.yaml")
    folder.write("[", "sites/x.txt")
    assert [site.hosts for site in folder.load().sites] == [["z.example.com"], ["a.example.com"]]


def test_one_file_may_be_named(folder):
    file = folder.write(SITE, "only.yaml")
    folder.write("[", "other.yaml")
    configuration = load(file, {}, now=NOW.timestamp())
    assert [site.hosts for site in configuration.sites] == [["a.example.com"]]
    assert configuration.state == folder.root / ".state"


def test_defaults_are_the_documented_ones(folder):
    folder.write(SITE)
    server = folder.load().server
    assert [listener.address for listener in server.listeners] == [("0.0.0.0", 8443)]
    assert server.listeners[0].protocols == ["http/1.1", "h2", "h3"]
    assert server.admin.address == ("127.0.0.1", 9090)
    assert (server.limits.connections, server.limits.header_size, server.limits.body_size) == (10_000, 32768, 0)
    assert (server.timeouts.handshake, server.timeouts.idle, server.timeouts.drain_delay) == (10.0, 75.0, 0.0)
    assert server.health.path == "/health"
    assert (server.log.level, server.log.access, server.log.format) == ("info", True, "auto")


def test_switches_take_off_in_any_spelling_and_nothing_means_defaults(folder):
    folder.write(SITE + "server: {admin: off, health: 'no', log: {access: off}, timeouts: {drain_delay: off}}\n")
    server = folder.load().server
    assert (server.admin, server.health, server.log.access, server.timeouts.drain_delay) == ("off", "off", False, 0.0)
    folder.write(SITE + "server:\n  admin:\n  health:\n")
    server = folder.load().server
    assert (server.admin.address, server.health.path) == (("127.0.0.1", 9090), "/health")


def test_values_in_every_form(folder):
    folder.write(
        SITE
        + """\
server:
  listeners: [{address: "[::0]:8443"}, {address: 127.0.0.1:0}, {address: 127.0.0.1:0}]
  limits: {body_size: 1.5MiB, header_size: 64 KiB, connection_rate: 2.5}
  timeouts: {idle: 1500ms, drain: 2m, header: 0.5s}
  trusted_proxies: [10.0.0.0/8, "::1", 192.0.2.7]
"""
    )
    server = folder.load().server
    assert [listener.address for listener in server.listeners] == [("::", 8443), ("127.0.0.1", 0), ("127.0.0.1", 0)]
    assert (server.limits.body_size, server.limits.header_size, server.limits.connection_rate) == (1572864, 65536, 2.5)
    assert (server.timeouts.idle, server.timeouts.drain, server.timeouts.header) == (1.5, 120.0, 0.5)
    assert server.trusted_proxies == ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]


def test_endpoints_are_normalised(folder):
    urls = ["http://EXAMPLE:80/", "https://example:443", "http://[::0:1]:9001", "unix:/run/x.sock", "unix:///run/y.sock"]
    folder.write(SITE.replace('["http://127.0.0.1:9001"]', str(urls)))
    pool = folder.load().sites[0].pools["web"]
    assert [endpoint.url for endpoint in pool.endpoints] == [
        "http://example",
        "https://example",
        "http://[::1]:9001",
        "unix:/run/x.sock",
        "unix:/run/y.sock",
    ]


def test_udp_and_tcp_may_share_an_address(folder):
    folder.write(SITE + "server: {listeners: [{address: '0.0.0.0:443', protocols: [h3]}, {address: '0.0.0.0:443', protocols: [h2]}]}\n")
    assert len(folder.load().server.listeners) == 2


def test_the_state_folder(folder):
    folder.write(SITE)
    beside = folder.root.parent / ".state"
    assert folder.load().state == beside
    given = str(folder.root.parent / "lib")
    assert folder.load({"STATE_DIRECTORY": f"{given}:/elsewhere"}).state == Path(given)
    folder.write("server: {state: ../var}\n", "sub/server.yaml")
    assert folder.load({"STATE_DIRECTORY": given}).state == folder.root / "sub" / ".." / "var"


def test_warnings(folder):
    text = """\
site:
  hosts: [a.example.com]
  tls: {self_signed: true}
  routes:
    - {pool: web}
    - {match: {path: /}, respond: {body: never}}
  pools:
    web: {endpoints: ["https://127.0.0.1:9001"], tls: {verify: false}}
    spare: {endpoints: ["http://127.0.0.1:9001"]}
"""
    assert folder.warnings(text) == [
        "one.yaml:6:7: this route is never taken: the one at line 5 matches the same requests and stands before it",
        "one.yaml:8:64: 'verify: false': whoever stands in between can read and change what goes to this pool",
        "one.yaml:9:5: no route uses pool 'spare'",
    ]


def test_no_site_is_worth_a_warning(folder):
    assert folder.warnings("server: {}\n") == ["conf.d: no site is configured: only the health answer is served"]


def test_a_pool_of_a_broken_file_is_not_missed(folder):
    one = SITE.replace("{pool: web}", "{pool: shared}")
    assert folder.problems(one, "pools: {shared: {endpoints: []}}\n") == [
        "two.yaml:1:29: 'pools.shared.endpoints' is too short: got a list, expected 1 at least"
    ]
    (folder.root / "two.yaml").write_text("pools: {shared: [\n")
    problems = folder.problems(one)
    assert len(problems) == 1
    assert problems[0].startswith("two.yaml:2:1: not valid YAML")


def test_an_empty_file_among_others_is_fine(folder):
    folder.write(SITE)
    folder.write("", "empty.yaml")
    folder.write("# nothing yet\n", "words.yaml")
    assert len(folder.load().sites) == 1


def test_the_environment_fills_in(folder):
    folder.write(SITE.replace("127.0.0.1:9001", "${BACKEND}").replace("]}}", "], balance: {policy: '${POLICY:-random}'}}}"))
    pool = folder.load({"BACKEND": "10.0.0.1:81"}).sites[0].pools["web"]
    assert ([endpoint.url for endpoint in pool.endpoints], pool.balance.policy) == (["http://10.0.0.1:81"], "random")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path):
    inner = tmp_path / "sites"
    inner.mkdir()
    inner.chmod(0)
    try:
        assert failure(tmp_path) == f"{inner}: can't be read: Permission denied"
    finally:
        inner.chmod(0o700)


def test_health_checks_without_a_word_more_are_on_with_their_defaults(folder):
    folder.write(SITE.replace('9001"]', '9001"], health: '))
    health = folder.load().sites[0].pools["web"].health
    assert health is not None
    assert (health.path, health.interval) == ("/health", 2.0)


def test_the_collector_rests_while_a_configuration_is_read(folder, monkeypatch):
    folder.write(SITE)
    seen = []
    monkeypatch.setattr("proxy.config.load.read_document", lambda *given, read=read_document: seen.append(gc.isenabled()) or read(*given))
    folder.load()
    folder.write("site: [", "broken.yaml")
    with pytest.raises(ConfigError):
        folder.load()
    assert (seen, gc.isenabled()) == ([False, False, False], True)


def test_every_file_that_was_read_is_told_whether_right_or_wrong(folder):
    folder.write("one", "word.txt")
    folder.write(SITE, "site.yaml")
    folder.write("pools: {p: {endpoints: [!file word.txt, !file none.txt]}}", "pools.yaml")
    read = {}
    with pytest.raises(ConfigError):
        load(folder.root, {}, read=read)
    assert {file.name for file in read if folder.root in file.parents} == {"site.yaml", "pools.yaml", "word.txt", "none.txt"}
    assert read[folder.root / "none.txt"].startswith(b"!can't be read")
    folder.write("two", "word.txt")
    again = {}
    with pytest.raises(ConfigError):
        load(folder.root, {}, read=again)
    assert {file.name for file in read if read[file] != again[file]} == {"word.txt"}
    assert {file.name for file in files_of(folder.root)} == {"site.yaml", "pools.yaml"}

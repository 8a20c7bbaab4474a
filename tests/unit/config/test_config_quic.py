"""``server.quic``: how its keys go together, and what the engines are told."""

import base64

import pytest
from config_folder import SITE


@pytest.mark.parametrize(
    ("server", "idle"),
    [("{}", 75), ("{timeouts: {idle: 20s}}", 20), ("{timeouts: {idle: 20s}, quic: {idle_timeout: 45s}}", 45)],
)
def test_the_idle_timeout_is_that_of_tcp_unless_it_has_its_own(folder, server, idle):
    folder.write(SITE + f"server: {server}\n")
    assert folder.load().server.quic_idle == idle


def test_keep_alive_is_off_and_for_requests_unless_it_is_said(folder):
    folder.write(SITE + "server: {quic: {keep_alive: {interval: 20s}}}\n")
    keep_alive = folder.load().server.quic.keep_alive
    assert (keep_alive.interval, keep_alive.when) == (20, "requests")
    folder.write(SITE)
    assert folder.load().server.quic.keep_alive is None


@pytest.mark.parametrize(
    ("idle", "timeout"), [("timeouts: {idle: 20s}", 20), ("quic: {idle_timeout: 15s, keep_alive: {interval: 20s}}", 15)]
)
def test_pings_that_would_come_too_late(folder, idle, timeout):
    quic = "" if "quic" in idle else ", quic: {keep_alive: {interval: 20s}}"
    text = f"server: {{{idle}{quic}}}\n"
    column = text.index("interval") + 1
    assert folder.problems(SITE + text) == [
        f"one.yaml:6:{column}: 'interval' is not less than the idle timeout of QUIC connections ({timeout}s), which comes first"
    ]


def test_pings_that_would_be_a_flood(folder):
    (problem,) = folder.problems(SITE + "server: {quic: {keep_alive: {interval: 100ms}}}\n")
    assert problem.startswith("one.yaml:6:40: 'server.quic.keep_alive.interval'")


def test_connections_have_no_limit_of_age_unless_it_is_said(folder):
    folder.write(SITE)
    assert folder.load().server.timeouts.connection_age == 0
    folder.write(SITE + "server: {timeouts: {connection_age: 1h}}\n")
    assert folder.load().server.timeouts.connection_age == 3600


def test_migration_is_off_by_listener(folder):
    folder.write(SITE + "server: {listeners: [{address: '127.0.0.1:1'}, {address: '127.0.0.1:2', migration: off}]}\n")
    assert [listener.migration for listener in folder.load().server.listeners] == [True, False]


def test_migration_means_nothing_on_tcp(folder):
    text = "server: {listeners: [{address: '127.0.0.1:1', protocols: [h2], migration: off}]}\n"
    assert folder.problems(SITE + text) == [
        f"one.yaml:6:{text.index('migration') + 1}: 'migration' has no effect without h3: connections over TCP can't move"
    ]


def test_resumption_is_on_and_early_data_off_unless_it_is_said(folder):
    folder.write(SITE)
    configuration = folder.load()
    assert configuration.server.quic.resumption
    assert not configuration.sites[0].early_data
    folder.write(SITE + "  early_data: on\nserver: {quic: {resumption: off}}\n")
    configuration = folder.load()
    assert not configuration.server.quic.resumption
    assert configuration.sites[0].early_data


def test_early_data_without_the_tickets_that_it_comes_with(folder):
    assert folder.warnings(SITE + "  early_data: on\nserver: {quic: {resumption: off}}\n") == [
        "one.yaml:6:3: 'early_data' has no effect while server.quic.resumption is off: there are no tickets that it could come with"
    ]
    assert folder.warnings(SITE + "  early_data: off\nserver: {quic: {resumption: off}}\n") == []
    assert folder.warnings(SITE + "  early_data: on\n") == []


def test_early_data_with_keys_that_other_instances_have(folder):
    key = base64.b64encode(bytes(32)).decode()
    server = f"server: {{cluster: {{key: '0 2026-01-01T00:00:00Z {key}'}}}}\n"
    assert folder.warnings(SITE + "  early_data: on\n" + server) == [
        "one.yaml:6:3: 'early_data' saves no round trip beside server.cluster: another instance may have the same request, so all wait"
    ]
    assert folder.warnings(SITE + server) == []


def test_early_data_where_client_certificates_are_asked_for(folder):
    text = SITE.replace("{self_signed: true}", "{self_signed: true, client_certificates: {ca: ca.pem}}") + "  early_data: on\n"
    problems = folder.problems(text)
    assert problems == ["one.yaml:6:3: 'early_data' has no effect with client certificates: they are asked for in the handshake"]


def test_traces_go_beside_the_file_that_says_so(folder):
    file = folder.write(SITE + "server: {quic: {qlog: {folder: traces, clients: [10.0.0.0/8]}}}\n", "more/one.yaml")
    configuration = folder.load()
    assert configuration.qlog_folder == file.parent / "traces"
    assert not configuration.qlog_folder.exists()
    qlog = configuration.server.quic.qlog
    assert (qlog.share, qlog.clients, qlog.file_size, qlog.files) == (0, ["10.0.0.0/8"], 10 * 1024 * 1024, 1000)


def test_no_traces_unless_it_is_said(folder):
    folder.write(SITE)
    assert folder.load().qlog_folder is None


def test_traces_of_nobody(folder):
    text = "server: {quic: {qlog: {folder: traces}}}\n"
    (problem,) = folder.problems(SITE + text)
    assert problem.endswith("'qlog' traces nobody: expected a share above 0, or clients")


def test_several_workers_need_a_slot_in_connection_ids_that_are_routed_by(folder):
    text = SITE + "server: {%s quic: {connection_ids: {server_id: '0102'%s}}}\n"
    for workers, told in (("", "auto"), ("workers: 4,", "4")):
        (problem,) = folder.problems(text % (workers, ", slot: off"))
        assert "'slot' is off, and 'workers' is " + told + "; expected 'slot: on'" in problem
    for workers, slot, expected in (("", "", True), ("", ", slot: on", True), ("workers: 1,", ", slot: off", False)):
        folder.write(text % (workers, slot), "one.yaml")
        assert folder.load().server.quic.connection_ids.slot is expected

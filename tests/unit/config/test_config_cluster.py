"""``server.cluster``: where keys come from, how they go together with connection IDs, and what is told of mistakes."""

import base64
import pickle
import socket

import pytest
from config_folder import NOW, SITE

from proxy.config import gather
from proxy.config.connection_ids import Forms, connection_id_forms, keys_of
from proxy.config.diff import in_use, needing_restart, outside
from proxy.config.own_address import own_address, server_id_of
from proxy.config.transfer import pack, unpack
from proxy.keys import Keyring, KeySet, parse

KEYS = [f"{epoch} 2030-05-0{epoch + 1}T00:00:00Z {base64.b64encode(bytes([epoch]) * 32).decode()}" for epoch in range(3)]
FILE = "server: {cluster: {key_file: cluster.key}}\n"
AT = NOW.timestamp()


def with_ids(ids: str) -> str:
    return f"server: {{cluster: {{key_file: cluster.key}}, quic: {{connection_ids: {ids}}}}}\n"


def lay(folder, text: str, *keys: str, mode: int = 0o600) -> None:
    folder.write(SITE + text)
    folder.write("\n".join(keys), "cluster.key").chmod(mode)


def forms(configuration) -> Forms:
    return connection_id_forms(configuration, Keyring(keys_of(configuration, b"own"), b"own"), AT)


def test_keys_come_from_a_file_beside_the_configuration(folder) -> None:
    lay(folder, FILE, *KEYS[:2])
    configuration = folder.load()
    assert configuration.keys == parse("\n".join(KEYS[:2]), "f")
    assert configuration.key_file == folder.root / "cluster.key"
    assert folder.root / "cluster.key" in configuration.read
    assert configuration.warnings == ()


def test_keys_come_from_the_environment(folder) -> None:
    folder.write(SITE + "server: {cluster: {key: '${CLUSTER_KEY}'}}\n")
    configuration = folder.load({"CLUSTER_KEY": "\n".join(KEYS)})
    assert configuration.keys == parse("\n".join(KEYS), "f")
    assert configuration.key_file is None


def test_without_a_cluster_the_state_folders_secret_is_the_key(folder) -> None:
    folder.write(SITE)
    assert keys_of(folder.load(), b"s" * 32) == KeySet.alone(b"s" * 32)


def test_a_file_that_everybody_reads_is_warned_of(folder) -> None:
    lay(folder, FILE, KEYS[0], mode=0o644)
    (warning,) = [folder.short(str(warning)) for warning in folder.load().warnings]
    assert warning.startswith("qproxy.yaml:6:30: cluster.key: can be read by everybody; expected by its owner only")


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("{}", "one.yaml:6:10: neither 'key_file' nor 'key'; expected one of them"),
        ("{key_file: a, key: b}", "one.yaml:6:33: 'key' stands beside 'key_file'; expected one of them"),
        ("{key_file: none.key}", "one.yaml:6:30: none.key: can't be read: No such file or directory"),
        ("{key: ''}", "one.yaml:6:25: 'server.cluster.key' is empty: got '', expected the lines of a key file: EPOCH BEGIN KEY"),
        ("{key: 'x'}", "one.yaml:6:25: key:1: 1 word; expected three: EPOCH BEGIN KEY"),
        ("{key: !file two.key}", "one.yaml:6:25: !file two.key:2: 2 words; expected three: EPOCH BEGIN KEY"),
        ("{key: '${K}'}", "one.yaml:6:25: ${K}:1: the key has 4 bytes; expected 32 in base64 (44 characters)"),
        ("{file: x}", "one.yaml:6:20: unknown key 'file'"),
        (
            "{key_file: a, address: 8444}",
            "one.yaml:6:42: 'server.cluster.address' is not valid: got '8444', expected an IP address and a port",
        ),
        ("{key_file: a, address: '10.0.0.1:0'}", "one.yaml:6:33: port 0 would be another one at each start; expected a port"),
        ("{key_file: a, address: '0.0.0.0:8443'}", "one.yaml:6:33: a listener has this UDP port; expected another one"),
        ("{key_file: a, peers: ['10.0.0.1:1']}", "one.yaml:6:33: 'peers' stands without 'address'; expected both"),
        (
            "{key_file: a, address: '10.0.0.1:8444', peers: [b]}",
            "one.yaml:6:67: 'server.cluster.peers[0]' is not valid: got 'b', expected an IP address or a host name, and a port",
        ),
        (
            "{key_file: a, address: '10.0.0.1:8444', peers: ['b:1']}",
            "one.yaml:6:59: 'peers' has no effect without server.quic.connection_ids",
        ),
        ("{key_file: a, forward_rate: 0}", "one.yaml:6:47: 'server.cluster.forward_rate' is too small: got '0', expected 1 or more"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_no_key(folder, server, problem) -> None:
    folder.write(f"{KEYS[0]}\nsecret hunter2\n", "two.key")
    problems = folder.problems(SITE + f"server: {{cluster: {server}}}\n", environ={"K": "0 2030-05-01T00:00:00Z c2VjcQ=="})
    assert problems[0].startswith(problem), problems
    assert not any("hunter2" in each or "c2VjcQ" in each for each in problems)


def test_all_mistakes_of_a_key_file_are_told_at_once(folder) -> None:
    folder.write("what\n0 never x\n", "cluster.key")
    assert folder.problems(SITE + FILE) == [
        "one.yaml:6:30: cluster.key:1: 1 word; expected three: EPOCH BEGIN KEY",
        "one.yaml:6:30: cluster.key:2: the begin is 'never'; expected a time in UTC like 2026-11-23T20:00:00Z",
    ]


# Connection IDs


def test_a_server_id_is_enough_for_encrypted_ids_of_every_epoch(folder) -> None:
    lay(folder, with_ids("{server_id: 'a1b2'}"), *KEYS)
    configuration = folder.load()
    found = forms(configuration)
    assert found.present is not None
    keys = Keyring(keys_of(configuration, b""), b"")
    assert [(form.epoch, form.layout.config_id, form.layout.key) for form in found.routable] == [
        (epoch, epoch, keys.cid_key(epoch)) for epoch in (2, 0, 1)
    ]
    assert {(form.server_id, form.layout.nonce_bytes, form.layout.slot) for form in found.routable} == {(b"\xa1\xb2", 8, True)}


def test_ids_in_clear_for_a_balancer_that_has_no_key(folder) -> None:
    """The form of AWS; its controller gives the server ID in base64."""
    lay(folder, with_ids("{server_id: 'base64:${AWS_LBC_QUIC_SERVER_ID}', nonce: 10, slot: on, key: off, config: 3}"), KEYS[0])
    found = forms(folder.load({"AWS_LBC_QUIC_SERVER_ID": "AQIDBAUGBwg="}))
    assert found.present is not None
    layout = found.present.layout
    assert (found.present.server_id, found.present.epoch, found.others) == (bytes(range(1, 9)), None, ())
    assert (layout.config_id, layout.key, layout.cid_bytes) == (3, None, 20)


@pytest.mark.parametrize(
    ("ids", "at", "problem"),
    [
        (
            "{server_id: aa, key: 8f95f09245765f80256934e50c66207f}",
            "key: 8f",
            "'key' stands beside server.cluster, from whose keys it follows; expected none, or 'key: off' for IDs in clear",
        ),
        (
            "{server_id: aa, config: 0}",
            "config",
            "'config' stands beside server.cluster, from whose epochs it follows; expected none, or 'key: off' for IDs in clear",
        ),
        (
            "{server_id: address, key: off}",
            "server_id",
            "'server_id: address' in clear would show this machine's address to every client; expected server.cluster, or a 'key'",
        ),
    ],
)
def test_what_does_not_go_together_with_a_cluster(folder, ids, at, problem) -> None:
    text = with_ids(ids)
    folder.write(KEYS[0], "cluster.key")
    assert folder.problems(SITE + text) == [f"one.yaml:6:{text.index(at) + 1}: {problem}"]


def test_an_address_in_clear_is_refused_without_a_cluster_too(folder) -> None:
    (problem,) = folder.problems(SITE + "server: {quic: {connection_ids: {server_id: address}}}\n")
    assert "'server_id: address' in clear would show" in problem


@pytest.mark.parametrize(
    ("address", "server_id"),
    [("10.0.0.11", b"\x0a\x00\x00\x0b"), ("2001:db8:1:2:a:b:c:d", bytes.fromhex("000a000b000c000d"))],
)
def test_the_own_address_is_a_server_id(folder, monkeypatch, address, server_id) -> None:
    monkeypatch.setattr(gather, "own_address", lambda: address)
    lay(folder, with_ids("{server_id: address}"), KEYS[0])
    configuration = folder.load()
    assert (configuration.server_id, server_id_of(address)) == (server_id, server_id)
    found = forms(configuration)
    assert found.present is not None
    assert found.present.layout.cid_bytes == 1 + len(server_id) + 8 + 1


@pytest.mark.parametrize(
    ("address", "server_id"),
    [
        ("192.0.2.7:8444", b"\xc0\x00\x02\x07"),
        ("'[2001:db8::1:2]:8444'", bytes.fromhex("0000000000010002")),
        ("0.0.0.0:8444", b"\x0a\x00\x00\x0b"),
    ],
)
def test_the_address_where_the_others_are_heard_is_the_own_one(folder, monkeypatch, address, server_id) -> None:
    monkeypatch.setattr(gather, "own_address", lambda: "10.0.0.11")
    lay(folder, with_ids("{server_id: address}").replace("cluster: {", f"cluster: {{address: {address}, "), KEYS[0])
    assert folder.load().server_id == server_id


def test_where_no_address_is_known_for_its_own(folder, monkeypatch) -> None:
    monkeypatch.setattr(gather, "own_address", lambda: None)
    folder.write(KEYS[0], "cluster.key")
    (problem,) = folder.problems(SITE + with_ids("{server_id: address}"))
    assert problem.endswith(
        "this machine has no route to others, so none of its addresses is known for its own; expected the server ID itself"
    )


def test_where_an_address_has_no_room(folder, monkeypatch) -> None:
    monkeypatch.setattr(gather, "own_address", lambda: "2001:db8::1")
    folder.write(KEYS[0], "cluster.key")
    (problem,) = folder.problems(SITE + with_ids("{server_id: address, nonce: 14}"))
    assert "this machine's address is 2001:db8::1, and server ID, nonce and slot have 23 bytes together" in problem


def test_the_address_of_this_machine_is_one_that_it_has() -> None:
    address = own_address()
    if address is None:
        pytest.skip("no default route here")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))


# Reloads


def test_keys_cross_to_other_processes(folder) -> None:
    lay(folder, FILE, *KEYS)
    configuration = folder.load()
    assert unpack(pack(configuration)).keys == configuration.keys
    assert pickle.loads(pickle.dumps(configuration.keys)) == configuration.keys


def test_a_reload_tells_which_epochs_there_are_now_and_no_key(folder) -> None:
    lay(folder, FILE, KEYS[0])
    old = folder.load()
    lay(folder, FILE, *KEYS[:2])
    new = folder.load()
    assert outside(old, new) == ["cluster.keys: epochs 0 -> epochs 0, 1"]
    assert outside(new, new) == []
    lay(folder, FILE, KEYS[0].replace("AAA", "BBB"))
    assert outside(old, folder.load()) == ["cluster.keys: epochs 0 -> epochs 0, with other keys"]
    folder.write(SITE)
    assert outside(old, folder.load()) == ["cluster.keys: epochs 0 -> none"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.12:8444", ("10.0.0.12", 8444)),
        ("'[2001:db8::12]:8444'", ("2001:db8::12", 8444)),
        ("Instances.Internal.:1", ("instances.internal", 1)),
    ],
)
def test_peers_are_hosts_with_ports(folder, written, read) -> None:
    peers = f"{{key_file: cluster.key, address: '10.0.0.1:8444', peers: [{written}]}}"
    lay(folder, f"server: {{cluster: {peers}, quic: {{connection_ids: {{server_id: aabb}}}}}}\n", KEYS[0])
    assert folder.load().server.cluster.peers == [read]


@pytest.mark.parametrize(
    "written", ["10.0.0.12", "10.0.0.12:0", "10.0.0.12:65536", "a b:1", "2001:db8::12:1", "10.0.0.300:1", "host:x", ":1"]
)
def test_what_is_no_peer(folder, written) -> None:
    peers = f"{{key_file: cluster.key, address: '10.0.0.1:8444', peers: ['{written}']}}"
    text = f"server: {{cluster: {peers}, quic: {{connection_ids: {{server_id: aabb}}}}}}\n"
    folder.write(KEYS[0], "cluster.key")
    [problem] = folder.problems(SITE + text)
    at = text.index("peers") + len("peers: [") + 1
    assert problem.startswith(f"one.yaml:6:{at}: 'server.cluster.peers[0]' is not valid: got '{written}'")


def test_other_peers_take_effect_with_a_reload_and_another_address_with_a_restart(folder) -> None:
    def written(address: str, peer: str) -> str:
        cluster = f"{{key_file: cluster.key, address: '{address}', peers: ['{peer}']}}"
        return f"server: {{cluster: {cluster}, quic: {{connection_ids: {{server_id: aabb}}}}}}\n"

    lay(folder, written("10.0.0.1:8444", "b:1"), KEYS[0])
    old = folder.load()
    lay(folder, written("10.0.0.2:8444", "c:1"), KEYS[0])
    new = folder.load()
    assert outside(old, new) == ["cluster.peers changed"]
    assert needing_restart(old, new) == ["cluster.address changed"]
    served = in_use(old, new, 1).server.cluster
    assert (served.address, served.peers) == (("10.0.0.1", 8444), [("c", 1)])
    assert outside(old, old) == needing_restart(old, old) == []

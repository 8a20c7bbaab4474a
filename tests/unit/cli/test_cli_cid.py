"""``qproxy cid``: connection IDs are explained and minted as the configuration says."""

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.keys import Key

SITE = "site: {hosts: [a.example.com], tls: {self_signed: true}, routes: [{match: {path: /}, respond: {status: 200}}]}\n"
KEY = "8f95f09245765f80256934e50c66207f"


@pytest.fixture
def folder(tmp_path):
    def write(connection_ids):
        (tmp_path / "one.yaml").write_text(f"{SITE}server: {{quic: {{connection_ids: {connection_ids}}}}}\n")
        return str(tmp_path)

    return write


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def test_a_connection_id_is_explained(folder):
    where = folder(f"{{server_id: ed793a51d49b8f5f, nonce: 8, config: 2, key: {KEY}}}")
    result = run("cid", "decode", "514dd2d05a7b0de9b2b9907afb5ecf8cc303", "-c", where)
    assert (result.exit_code, result.output) == (
        0,
        "configuration ID: 2\nserver ID: ed793a51d49b8f5f (this server)\nnonce: ee080dbf48c0d1e5\nslot: 3\n",
    )


def test_the_server_of_another_and_the_slot_are_told(folder):
    where = folder("{server_id: '0x0001', nonce: 4, slot: on}")
    result = run("-c", where, "cid", "decode", "07:00:02:aa:bb:cc:dd:05")
    assert result.output == "configuration ID: 0\nserver ID: 0002 (another server; this one is 0001)\nnonce: aabbccdd\nslot: 5\n"


def test_what_names_no_server_is_told_with_exit_code_1(folder):
    result = run("cid", "decode", "e7000000000000", "-c", folder("{server_id: base64:AAE=, nonce: 4}"))
    assert (result.exit_code, result.output) == (1, "names no server: its configuration ID is 7, not 0\n")


@pytest.mark.parametrize("written", [True, False])
def test_of_an_opaque_one_the_slot_is_told(folder, tmp_path, written):
    where = folder("{server_id: '0001', nonce: 4, slot: on}")
    if not written:
        (tmp_path / "one.yaml").write_text(SITE)
    result = run("cid", "decode", "e901020304050607082a", "-c", where)
    assert (result.exit_code, result.output) == (0, "names no server\nslot: 42 (where several workers share the port)\n")


def test_what_is_minted_names_this_server(folder):
    where = folder(f"{{server_id: '0001', nonce: 6, key: {KEY}}}")
    minted = run("cid", "new", "--count", "3", "-c", where).output.split()
    assert len(set(minted)) == 3
    for cid in minted:
        assert "server ID: 0001 (this server)" in run("cid", "decode", cid, "-c", where).output


def test_bytes_that_are_none_and_a_configuration_without(folder, tmp_path):
    result = run("cid", "decode", "xyz", "-c", folder("{server_id: '0001'}"))
    assert (result.exit_code, "'xyz' is no connection ID; expected pairs of hexadecimal digits" in result.output) == (2, True)
    (tmp_path / "one.yaml").write_text(SITE)
    result = run("cid", "new", "-c", str(tmp_path))
    assert (result.exit_code, "has no server.quic.connection_ids" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("connection_ids", "told"),
    [
        ("{server_id: xy}", "one.yaml:2:45: 'server.quic.connection_ids.server_id' is not valid: got 'xy', expected bytes as pairs of"),
        ("{nonce: 4}", "one.yaml:2:"),
        ("{server_id: '0102', key: '0102'}", "the key has to have 16 bytes, not 2"),
        ("{server_id: '010203040506070809', nonce: 10}", "have 20 bytes together, and a connection ID has room for 19"),
    ],
)
def test_mistakes_are_told(folder, connection_ids, told):
    result = run("check", "-c", folder(connection_ids))
    assert result.exit_code == 2
    assert told in result.output


def test_ids_are_read_under_every_key_of_a_cluster(tmp_path):
    old, new = (Key(epoch, 1_700_000_000 + epoch, bytes([epoch]) * 32) for epoch in (9, 10))
    key_file = tmp_path / "cluster.key"
    key_file.touch(0o600)
    where = str(tmp_path)

    def lay(*keys):
        key_file.write_text("\n".join(key.line() for key in keys))
        (tmp_path / "one.yaml").write_text(
            f"{SITE}server: {{cluster: {{key_file: cluster.key}}, quic: {{connection_ids: {{server_id: a1b2}}}}}}\n"
        )

    lay(old)
    before = run("cid", "new", "-c", where).output.strip()
    lay(old, new)
    after = run("cid", "new", "-c", where).output.strip()
    for cid, epoch in ((before, 9), (after, 10)):
        told = run("cid", "decode", cid, "-c", where)
        assert told.exit_code == 0
        assert told.output.startswith(
            f"configuration ID: {epoch % 7} (epoch {epoch} of the cluster's keys)\nserver ID: a1b2 (this server)\n"
        )
    checked = run("check", "-c", where, "--no-running").output
    assert "connection IDs: 12 bytes, server a1b2, configuration ID 3, encrypted\n" in checked
    assert "cluster: the key of epoch 10 seals, and none comes after it; opens 9 too\n" in checked
    lay(new)
    told = run("cid", "decode", before, "-c", where)
    assert (told.exit_code, told.output) == (1, "names no server: its configuration ID is 2, not 3\n")


def test_check_tells_of_the_connection_ids_but_not_of_their_key(folder):
    result = run("check", "-c", folder(f"{{server_id: '0001', key: {KEY}}}"))
    assert "connection IDs: 12 bytes, server 0001, configuration ID 0, encrypted" in result.output
    assert KEY not in result.output


def test_a_tier_says_which_instance_is_named(tmp_path):
    old, new = (Key(epoch, 1_700_000_000 + epoch, bytes([epoch]) * 32) for epoch in (9, 10))
    shared = f"server: {{cluster: {{key: '{old.line()}\n\n{new.line()}'"
    site, tier = tmp_path / "site", tmp_path / "tier"
    site.mkdir()
    tier.mkdir()

    def tiers(*endpoints):
        instances = f"{{endpoints: [{', '.join(endpoints)}], envelope_port: 8444, nonce: 6}}"
        (tier / "one.yaml").write_text(f"{shared}}}}}\nl4: [{{address: '127.0.0.1:443', instances: {instances}}}]\n")

    (site / "one.yaml").write_text(f"{SITE}{shared}}}, quic: {{connection_ids: {{server_id: a1b2, nonce: 6}}}}}}\n")
    cid = run("cid", "new", "-c", str(site)).output.strip()
    tiers("{address: '10.0.0.1:8443', server_id: a1b1}", "{address: '10.0.0.2:8443', server_id: a1b2}")
    told = run("cid", "decode", cid, "-c", str(tier))
    assert told.exit_code == 0
    assert told.output.startswith(
        "configuration ID: 3 (epoch 10 of the cluster's keys)\nserver ID: a1b2 (instance 10.0.0.2:8443, for 127.0.0.1:443)\nnonce: "
    )
    told = run("cid", "decode", "00" * 10, "-c", str(tier))
    assert told.output == "names no instance: expected a configuration ID of the cluster's keys, 2 (epoch 9), 3 (epoch 10)\n"
    assert told.exit_code == 1
    told = run("cid", "decode", cid[:8], "-c", str(tier))
    assert (told.exit_code, told.output) == (
        1,
        "names no instance of 127.0.0.1:443: it has 4 bytes, and those of this layout have 9\n",
    )
    tiers("'10.0.0.1:8443'")
    told = run("cid", "decode", cid, "-c", str(tier))
    assert (told.exit_code, "expected --server-id-bytes, which tells how long they are" in told.output) == (2, True)
    told = run("cid", "decode", cid, "--server-id-bytes", "2", "-c", str(tier))
    assert (told.exit_code, "server ID: a1b2 (of no instance that the configuration names, for 127.0.0.1:443)" in told.output) == (0, True)

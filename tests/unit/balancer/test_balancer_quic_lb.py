"""Connection IDs by QUIC-LB: the draft's vectors (as corrected), the layouts that are refused, and minting."""

import os
from itertools import pairwise

import pytest

from balancer.quic_lb import Codec, Layout, Minter, NotRoutable, Server, config_id_of

KEY = "8f95f09245765f80256934e50c66207f"
SALT = bytes(range(16))
SERVER = Server(b"AB", SALT)
VECTORS = [  # config id, key, server id, nonce, connection ID
    (0, "fdf726a9893ec05c0632d3956680baf0", "31441a", "9c69c275", "0767947d29be054a"),
    (0, None, "c4605e", "4504cc4f", "07c4605e4504cc4f"),
    (1, None, "350d28b420", "03487d970b", "2a350d28b42003487d970b"),
    (0, KEY, "ed793a", "ee080dbf", "0720b1d07b359d3c"),
    (1, KEY, "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
    (2, KEY, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
    (3, KEY, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "725779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
]


@pytest.mark.parametrize(("config_id", "key", "server_id", "nonce", "cid"), VECTORS)
def test_vectors_of_the_draft(config_id: int, key: str | None, server_id: str, nonce: str, cid: str) -> None:
    layout = Layout(config_id, len(server_id) // 2, len(nonce) // 2, key=bytes.fromhex(key) if key else None)
    codec = Codec(layout)
    assert codec.encode(bytes.fromhex(server_id), bytes.fromhex(nonce)).hex() == cid
    decoded = codec.decode(bytes.fromhex(cid))
    assert (decoded.server_id.hex(), decoded.nonce.hex(), decoded.slot) == (server_id, nonce, None)


def test_the_form_of_amazon_s_balancer() -> None:
    codec = Codec(Layout(0, 8, 10, slot=True))
    cid = codec.encode(bytes(range(8)), bytes(range(10)), slot=7)
    assert len(cid) == 20
    assert cid == b"\x13" + bytes(range(8)) + bytes(range(10)) + b"\x07"
    assert codec.decode(cid).slot == 7


def test_what_follows_a_connection_id_of_the_layout_does_not_matter() -> None:
    codec = Codec(Layout(2, 3, 5, slot=True, key=bytes(16)))
    cid = codec.encode(b"abc", b"12345", slot=9)
    assert codec.decode(cid + b"more") == codec.decode(cid)


@pytest.mark.parametrize(
    ("cid", "why"),
    [
        (b"", "it is empty"),
        (b"\x20" + bytes(8), "configuration ID is 1, not 0"),
        (bytes(7), "it has 7 bytes, and those of this layout have 8"),
    ],
)
def test_what_is_not_routable(cid: bytes, why: str) -> None:
    with pytest.raises(NotRoutable, match=why):
        Codec(Layout(0, 3, 4)).decode(cid)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((7, 3, 4), "0 to 6, not 7"),
        ((0, 0, 4), "at least 1 byte"),
        ((0, 3, 3), "at least 4 bytes, not 3"),
        ((0, 10, 9, True), "20 bytes together, and a connection ID has room for 19"),
        ((0, 3, 4, False, bytes(8)), "16 bytes, not 8"),
    ],
)
def test_layouts_that_the_draft_does_not_allow(arguments: tuple[int, int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Layout(*arguments)


def test_the_configuration_of_any_connection_id() -> None:
    assert [config_id_of(cid) for cid in (b"\x07", b"\x47abc", b"\xe0", b"")] == [0, 2, None, None]


@pytest.mark.parametrize("key", [None, bytes(16)], ids=["in clear", "encrypted"])
def test_every_connection_id_is_minted_once_by_all_slots_together(key: bytes | None) -> None:
    codec = Codec(Layout(0, 2, 4, key=key))
    minters = [Minter(codec, Server(b"AB", SALT, slot, 3), os.urandom) for slot in range(3)]
    cids = [minter() for minter in minters for _ in range(500)]
    assert len(set(cids)) == 1500  # a permutation of their own for each would make them collide, if seldom
    assert {minter._disguise(bytes(4)) for minter in minters} == {minters[0]._disguise(bytes(4))}
    assert {codec.decode(cid).server_id for cid in cids} == {b"AB"}
    if key is not None:
        nonces = [int.from_bytes(codec.decode(cid).nonce) for cid in cids]
        assert [nonce % 3 for nonce in nonces] == [0] * 500 + [1] * 500 + [2] * 500


def test_nonces_in_clear_do_not_count_up() -> None:
    codec = Codec(Layout(0, 2, 4))
    minter = Minter(codec, SERVER, os.urandom)
    nonces = [int.from_bytes(codec.decode(minter()).nonce) for _ in range(100)]
    assert not {second - first for first, second in pairwise(nonces)} & {1, -1}


def test_when_no_nonce_is_left_connection_ids_name_no_server() -> None:
    slots = 1 << 31  # two nonces for each
    minter = Minter(Codec(Layout(0, 2, 4)), Server(b"AB", SALT, 5, slots), os.urandom)
    assert minter.left == 2
    first, second, third = minter(), minter(), minter()
    assert first != second
    assert (minter.left, config_id_of(second), config_id_of(third)) == (0, 0, None)
    assert (third[0] & 31, len(third)) == (6, 7)  # tells its own length


def test_the_first_octet_can_keep_the_length_to_itself() -> None:
    codec = Codec(Layout(3, 2, 4, length_in_first=False))
    minter = Minter(codec, SERVER, os.urandom)
    firsts = {minter()[0] for _ in range(200)}
    assert {first >> 5 for first in firsts} == {3}
    assert len(firsts) > 8


def test_a_server_id_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a server ID of 2 and a nonce of 4 bytes, not 3 and 4"):
        Minter(Codec(Layout(0, 2, 4)), Server(b"ABC", SALT), os.urandom)
    with pytest.raises(ValueError, match="slot 2 is none of 2"):
        Minter(Codec(Layout(0, 2, 4)), Server(b"AB", SALT, 2, 2), os.urandom)

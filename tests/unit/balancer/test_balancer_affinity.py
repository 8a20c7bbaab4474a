"""Affinity keys: fixed length, keyed, and the same for what counts as one client."""

import pytest

from balancer.affinity import KEY_BYTES, address_key, connection_key

SECRET = b"a secret of the server"


def test_keys_depend_on_the_secret_and_the_input_and_have_one_length():
    keys = [
        connection_key(SECRET, b"\x01" * 8),
        connection_key(SECRET, b"\x02" * 8),
        connection_key(b"other", b"\x01" * 8),
        address_key(SECRET, "192.0.2.1"),
        address_key(b"other", "192.0.2.1"),
        connection_key(SECRET, b"192.0.2.1"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_the_same_connection_has_the_same_key():
    assert connection_key(SECRET, b"\x01" * 20) == connection_key(SECRET, b"\x01" * 20)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:DB8::1:0:0:0:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("not an address", "not an address", True),
        ("not:an:address", "not:another", False),
    ],
)
def test_which_addresses_are_one_client(one, other, same):
    assert (address_key(SECRET, one) == address_key(SECRET, other)) is same


def test_text_that_cannot_be_encoded_does_not_raise():
    assert len(address_key(SECRET, "\udcff")) == KEY_BYTES
    assert len(address_key(SECRET, "\udcff:")) == KEY_BYTES

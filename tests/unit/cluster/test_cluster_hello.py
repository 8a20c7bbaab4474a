"""HELLO: what it says, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cluster.hello import MAX_PORTS, MAX_SERVER_ID, STATES, Hello, decode

hellos = st.builds(
    Hello,
    st.binary(max_size=MAX_SERVER_ID),
    st.sampled_from(STATES),
    st.lists(st.integers(0, 65535), max_size=MAX_PORTS).map(tuple),
    st.integers(0, 2**64 - 1),
)


@given(hellos)
def test_what_is_encoded_is_decoded(hello: Hello) -> None:
    assert decode(hello.encode()) == hello


@given(st.binary(max_size=300))
def test_any_bytes_are_a_hello_that_encodes_to_them_or_none(data: bytes) -> None:
    hello = decode(data)
    assert hello is None or hello.encode() == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(9),
        bytes(8) + b"\x03\x00",
        bytes(8) + b"\x00\x05abcd",
        bytes(8) + b"\x00\x15" + bytes(21),
        bytes(8) + b"\x00\x00\x01",
        bytes(10) + bytes(2 * MAX_PORTS + 2),
    ],
    ids=["empty", "cut off", "state", "server ID cut off", "server ID too long", "half a port", "too many ports"],
)
def test_what_is_none(data: bytes) -> None:
    assert decode(data) is None

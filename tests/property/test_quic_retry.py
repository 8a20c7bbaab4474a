"""What the tokens of Retry packets promise for all clients, IDs and times."""

from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.engine.quic.retry import LIFETIME, SKEW, TOKEN_BYTES, Refusal, Tokens
from proxy.keys import Keyring

SECRET = bytes(range(32))
cids = st.binary(max_size=20)
hosts = st.ip_addresses().filter(lambda address: not getattr(address, "ipv4_mapped", None)).map(str)
peers = st.tuples(hosts, st.integers(0, 65535))
clients = st.tuples(peers, cids, cids)
times = st.floats(1e9, 4e9)


def tokens(secret: bytes = SECRET, salt: bytes = b"r" * 16) -> Tokens:
    return Tokens(Keyring.alone(secret), lambda size: salt[:size])


@given(st.binary(min_size=16, max_size=16), clients, times, st.floats(-SKEW + 0.01, LIFETIME - 0.01))
def test_what_is_sealed_is_opened_by_everybody_with_the_secret(salt, client, at, later):
    peer, original, source = client
    token = tokens(salt=salt).seal(peer, original, source, at)
    assert len(token) == TOKEN_BYTES
    assert tokens(salt=b"another start...").open(token, peer, source, at + later) == original
    assert tokens(secret=bytes(32)).open(token, peer, source, at) is Refusal.FORGED


@given(clients, peers, cids, times, st.floats(-1e9, 1e9) | st.floats(-30, 30))
def test_it_holds_for_one_address_one_connection_and_a_short_time(client, other, destination, at, later):
    peer, original, source = client
    token = tokens().seal(peer, original, source, at)
    in_time = -SKEW <= later <= LIFETIME
    assume(min(abs(later + SKEW), abs(later - LIFETIME)) > 0.01)
    assert (tokens().open(token, peer, source, at + later) == original) == in_time
    if other != peer:
        assert tokens().open(token, other, source, at) is Refusal.OTHER_ADDRESS
    if destination != source:
        assert tokens().open(token, peer, destination, at) is Refusal.OTHER_CONNECTION


@given(peers, cids, times, st.integers(0, TOKEN_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(peer, original, at, where, change):
    token = bytearray(tokens().seal(peer, original, b"source", at))
    token[where] ^= change
    assert tokens().open(bytes(token), peer, b"source", at) is (
        Refusal.UNKNOWN if where < 3 else Refusal.FORGED
    )  # behind the form: the epoch


@given(st.binary(max_size=300) | st.binary(min_size=TOKEN_BYTES - 4, max_size=TOKEN_BYTES - 4).map(b"qpR\1".__add__), peers, cids, times)
def test_whatever_comes_is_refused_and_never_raises(token, peer, destination, at):
    assert tokens().open(token, peer, destination, at) in (Refusal.UNKNOWN, Refusal.FORGED)

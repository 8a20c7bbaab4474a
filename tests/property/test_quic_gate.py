"""What the gate promises whoever comes, goes, answers and fails, in whatever order."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.quic import packets
from proxy.engine.quic.gate import Arrival, Gate, network_of
from proxy.engine.quic.ids import Minter
from proxy.engine.quic.retry import TOKEN_BYTES
from proxy.engine.quic.settings import QuicSettings
from proxy.keys import Keyring

SECRET = b"s" * 16
hosts = st.sampled_from(["192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1", "2001:db8:1::1", "2001:db8:2::1"])
steps = st.one_of(
    st.tuples(st.just("comes"), hosts, st.booleans()),
    st.tuples(st.just("leaves"), st.integers(0, 100), st.booleans()),
    st.tuples(st.just("later"), st.floats(0, 30), st.just(value=False)),
)


class Guests:
    """Who is inside, by our own account."""

    def __init__(self, settings: QuicSettings) -> None:
        self.settings = settings
        self.gate = Gate(settings, Keyring.alone(SECRET), Minter(Keyring.alone(SECRET), bytes), bytes, lambda: 1e9)
        self.inside: dict[int, tuple[str, bool]] = {}
        self.count = 0
        self.now = 0.0

    def comes(self, host: str, answers: bool) -> None:
        self.count += 1
        first = packets.LongHeader(1, b"%08d" % self.count, b"client", initial=True, early=False, token=b"")
        judged = self.gate.judge(first, (host, 1), self.now, may_answer=True)
        if isinstance(judged, bytes) and answers:
            source = packets.read_long_header(judged).source
            token = judged[-16 - TOKEN_BYTES : -16]
            again = packets.LongHeader(1, source, b"client", initial=True, early=False, token=token)
            judged = self.gate.judge(again, (host, 1), self.now, may_answer=True)
        if isinstance(judged, Arrival):
            assert judged.original == first.destination
            self.gate.enter(self.count, host)
            self.inside[self.count] = host, judged.retry_source is not None

    def leaves(self, number: int, complete: bool) -> None:
        if self.inside:
            handle = list(self.inside)[number % len(self.inside)]
            del self.inside[handle]
            self.gate.leave(handle, complete=complete)

    def later(self, seconds: float, _: bool) -> None:
        self.now += seconds

    def holds(self) -> None:
        settings = self.settings
        networks = Counter(network_of(host) for host, _ in self.inside.values())
        unproven = Counter(network_of(host) for host, proven in self.inside.values() if not proven)
        assert self.gate.handshakes == len(self.inside) <= settings.handshakes
        assert self.gate._networks == networks
        assert max(networks.values(), default=0) <= settings.handshakes_per_network
        if settings.retry == "auto":
            assert sum(unproven.values()) <= settings.retry_from
            assert max(unproven.values(), default=0) <= settings.retry_from_network
        if settings.retry == "always":
            assert not unproven


@given(st.sampled_from(["auto", "always", "never"]), st.integers(1, 30), st.integers(1, 10), st.lists(steps, max_size=100))
def test_the_bounds_hold_and_nothing_is_left_behind(retry, handshakes, of_network, dialogue):
    guests = Guests(QuicSettings(retry=retry, handshakes=handshakes, handshakes_per_network=of_network))
    for step, argument, flag in dialogue:
        getattr(guests, step)(argument, flag)
        guests.holds()
    while guests.inside:
        guests.leaves(0, complete=True)
    guests.holds()
    guests.later(21.0, _=False)  # two windows, however they are rounded
    assert guests.gate.first_packets(guests.now).asking == (retry == "always")

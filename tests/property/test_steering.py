"""The program that steers datagrams, in an interpreter, against its rule in plain words of Python."""

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.quic_lb import unroutable
from proxy.listen.steering import LEAST, Steering
from tests.unit.listen.classic_bpf import run


def named_slot(steering: Steering, data: bytes) -> int | None:
    """The live slot that a datagram's destination connection ID names, if there is one."""
    long = data[0] & 0x80
    cid = data[6:] if long else data[1:]
    config = cid[0] >> 5
    length = 1 + (cid[0] & 31) if config == 7 else steering.lengths.get(config, 0)
    if not 1 <= length <= 20 or (long and data[5] != length):
        return None
    return cid[length - 1] if cid[length - 1] in steering.live else None


@st.composite
def steerings(draw: st.DrawFn) -> Steering:
    many = draw(st.sampled_from([4, 16, 64, 256]))
    live = draw(st.dictionaries(st.integers(0, many - 1), st.integers(0, many - 1), min_size=1, max_size=min(many, 64)))
    if draw(st.booleans()):
        live = {slot: slot for slot in live}
    accepting = draw(st.sets(st.sampled_from(sorted(live)), min_size=1))
    lengths = draw(st.dictionaries(st.integers(0, 6), st.integers(7, 20)))
    return Steering(live, accepting, draw(st.integers(0, (1 << 32) - 1)), lengths)


@st.composite
def packets(draw: st.DrawFn, steering: Steering) -> bytes:
    """Mostly such as look like ours, or nearly."""
    slot = draw(st.sampled_from([*steering.live]) | st.integers(0, 255))
    forms = [*steering.lengths.items(), (7, 10)]
    config, length = draw(st.sampled_from(forms) | st.tuples(st.integers(0, 7), st.integers(1, 20)))
    body = draw(st.binary(min_size=length - 1, max_size=length - 1))
    first = config << 5 | draw(st.sampled_from([length - 1]) | st.integers(0, 31))
    cid = (bytes([first]) + body)[: length - 1] + bytes([slot]) if length > 1 else bytes([first])
    rest = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        return bytes([draw(st.integers(0, 0x7F))]) + cid + rest
    version = draw(st.sampled_from([b"\0\0\0\x01", b"\x6b\x33\x43\xcf", b"\0\0\0\0"]) | st.binary(min_size=4, max_size=4))
    told = draw(st.sampled_from([length]) | st.integers(0, 255))
    return bytes([draw(st.integers(0x80, 0xFF))]) + version + bytes([told]) + cid + rest


@settings(max_examples=500)
@given(st.data())
def test_what_names_a_live_slot_goes_there_and_all_else_by_a_hash_to_one_that_accepts(data: st.DataObject) -> None:
    steering = data.draw(steerings())
    program = steering.program()
    accepting = {steering.live[slot] for slot in steering.accepting}
    for _ in range(10):
        packet = data.draw(packets(steering) | st.binary(max_size=60))
        index = run(program, packet)
        slot = named_slot(steering, packet) if len(packet) >= LEAST else None
        assert index in accepting if slot is None else index == steering.live[slot]


@given(st.data())
def test_what_goes_by_the_hash_goes_by_the_destination_alone(data: st.DataObject) -> None:
    """Each retransmission of a first packet, also of another type or version, meets the same worker."""
    steering = data.draw(steerings())
    program = steering.program()
    destination = data.draw(st.binary(min_size=8, max_size=20))
    rest = st.binary(min_size=12, max_size=100)

    def packet() -> bytes:
        head = bytes([data.draw(st.integers(0x80, 0xFF))]) + data.draw(st.binary(min_size=4, max_size=4))
        return head + bytes([len(destination)]) + destination + data.draw(rest)

    assert len({run(program, packet()) for _ in range(5)}) == 1


@given(st.data())
def test_a_change_of_who_is_alive_moves_nobody_else(data: st.DataObject) -> None:
    steering = data.draw(steerings())
    slot = data.draw(st.sampled_from(sorted(steering.live)))
    others = {other: index for other, index in steering.live.items() if other != slot}
    if not set(steering.accepting) - {slot}:
        return
    after = Steering(others, set(steering.accepting) - {slot}, steering.key, steering.lengths)
    before, program = steering.program(), after.program()
    for other in (*others, slot):
        packet = b"\x40" + unroutable(data.draw(st.binary(min_size=8, max_size=8)), other) + bytes(30)
        if other == slot:
            assert run(program, packet) in {after.live[accepts] for accepts in after.accepting}
        else:
            assert run(before, packet) == run(program, packet) == steering.live[other]

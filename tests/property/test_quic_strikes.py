"""The strike register: whatever comes in whatever order, no key counts twice within the window, and it never grows beyond its bound."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.quic.strikes import StrikeRegister

WINDOW = 10.0
CAPACITY = 4

steps = st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 0.1, 1.0, 4.9, 9.9, 10.0, 10.1, 25.0, -3.0, -30.0])), max_size=60)


@given(steps)
def test_no_key_counts_twice_within_the_window_and_the_register_is_bounded(steps: list[tuple[int, float]]) -> None:
    register = StrikeRegister(WINDOW, CAPACITY)
    counted: dict[bytes, float] = {}
    now = 1000.0
    for number, passes in steps:
        now += passes  # or goes back
        key = bytes([number])
        if register.first(key, now):
            assert key not in counted or abs(now - counted[key]) >= WINDOW
            counted[key] = now
        assert len(register) <= 2 * CAPACITY


@given(st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=50))
def test_every_new_key_counts_while_there_is_room(keys: list[bytes]) -> None:
    register = StrikeRegister(WINDOW, 50)
    assert all(register.first(key, 5.0) for key in keys)
    assert not any(register.first(key, 5.0 + WINDOW) for key in keys)


def test_when_it_is_full_there_is_no_verdict_until_the_window_is_over() -> None:
    register = StrikeRegister(WINDOW, 2)
    assert [register.first(bytes([number]), 20.0) for number in range(4)] == [True, True, False, False]
    assert register.first(b"x", 31.0)


def test_what_was_forgotten_does_not_count_again_when_the_clock_is_put_back() -> None:
    register = StrikeRegister(WINDOW, 5)
    assert register.first(b"a", 100.0)
    assert register.first(b"b", 130.0)
    assert not register.first(b"a", 101.0)

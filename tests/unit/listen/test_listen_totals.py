"""Several of a kind share a counter, and each adds what is its own."""

from proxy.counters import Cell
from proxy.listen.totals import Totals


def test_what_was_told_is_not_told_again() -> None:
    shared, other = Cell(), Cell()
    one, two = Totals(), Totals()
    for totals, total, sum_of_both in ((one, 3, 3), (two, 10, 13), (one, 3, 13), (one, 5, 15), (two, 11, 16)):
        totals.tell(shared, total)
        assert shared.value == sum_of_both
    one.tell(other, 7)
    assert (shared.value, other.value) == (16, 7)

"""Tables of flows: bounded, and forgetful by lifetime."""

from proxy.l4.tables import Table, TableSettings


def test_an_entry_lives_for_its_lifetime_after_it_was_last_used_and_twice_that_at_most():
    table = Table[str, int](TableSettings(size=10, lifetime=100))
    table.put("used", 1, 1000)
    table.put("left", 2, 1000)
    assert [table.get("used", now) for now in (1090, 1180, 1270, 1360)] == [1] * 4
    assert table.get("left", 1360) is None
    assert table.get("used", 1459) == 1
    assert table.get("used", 1700) is None
    assert len(table) == 0


def test_a_silent_stretch_of_two_lifetimes_empties_the_table():
    table = Table[str, int](TableSettings(size=10, lifetime=100))
    table.put("a", 1, 0)
    assert table.get("a", 200) is None


def test_a_full_table_refuses_and_counts_new_entries_and_keeps_the_old_ones():
    table = Table[int, int](TableSettings(size=3, lifetime=100))
    assert [table.put(number, number, 0) for number in range(5)] == [True, True, True, False, False]
    assert (len(table), table.full) == (3, 2)
    assert table.put(1, 10, 0)
    assert [table.get(number, 1) for number in range(5)] == [0, 10, 2, None, None]
    assert table.put(3, 3, 210)
    assert table.full == 2


def test_an_entry_of_the_older_generation_can_be_replaced_in_a_full_table():
    table = Table[int, int](TableSettings(size=1, lifetime=100))
    table.put(1, 1, 0)
    assert table.put(1, 2, 150)
    assert (table.get(1, 150), len(table), table.full) == (2, 1, 0)


def test_other_bounds_hold_at_once():
    table = Table[int, int](TableSettings(size=1, lifetime=1000))
    table.put(1, 1, 0)
    table.resize(TableSettings(size=2, lifetime=10))
    assert table.put(2, 2, 1)
    assert [table.get(1, 15), table.get(1, 40)] == [1, None]

"""What a supervisor decides by itself."""

from proxy.process.supervisor import MAX_REPLACEMENT_PAUSE, replacement_pause


def test_who_is_replaced_again_and_again_for_its_memory_is_replaced_less_and_less_often():
    assert [replacement_pause(count) for count in range(9)] == [0, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert replacement_pause(10_000 // 10) == MAX_REPLACEMENT_PAUSE

"""The retry budget: a share of the requests, a minimum each second, and no hoard."""

from balancer.budget import WINDOW, Budget


def spend(budget, now, limit=10_000):
    spent = 0
    while spent < limit and budget.allow_retry(now):
        spent += 1
    return spent


def test_without_requests_only_the_minimum_of_each_second_is_there():
    budget = Budget(ratio=0.5, minimum=3)
    assert spend(budget, 100.0) == 3
    assert spend(budget, 100.0) == 0
    assert spend(budget, 101.0) == 3
    assert spend(budget, 101.5) == 1
    assert spend(budget, 500.0) == 3


def test_requests_earn_their_ratio():
    budget = Budget(ratio=0.2, minimum=0)
    for _ in range(50):
        budget.note_request(1.0)
    assert spend(budget, 1.0) == 10
    assert spend(budget, 2.0) == 0


def test_nothing_is_allowed_when_both_are_off():
    budget = Budget(ratio=0, minimum=0)
    for second in range(100):
        budget.note_request(float(second))
        assert not budget.allow_retry(float(second))


def test_a_minimum_under_one_is_a_retry_now_and_then():
    budget = Budget(ratio=0, minimum=0.1)
    assert spend(budget, 0.0) == 1
    assert spend(budget, 9.0) == 0
    assert spend(budget, 10.5) == 1


def test_credit_of_a_busy_time_lapses():
    budget = Budget(ratio=0.5, minimum=0)
    for _ in range(1000):
        budget.note_request(0.0)
    budget.note_request(WINDOW)
    assert spend(budget, WINDOW) == 500, "the window before counts"

    for _ in range(1000):
        budget.note_request(WINDOW)
    budget.note_request(3 * WINDOW)
    assert spend(budget, 3 * WINDOW) <= 1, "older ones do not"


def test_credit_left_by_a_lapsed_window_is_bounded_when_a_retry_comes_first():
    budget = Budget(ratio=0.5, minimum=0)
    for _ in range(1000):
        budget.note_request(0.0)
    assert spend(budget, 100 * WINDOW) == 1


def test_a_request_now_and_then_earns_a_retry_in_the_end():
    budget = Budget(ratio=0.25, minimum=0)
    for number in range(4):
        budget.note_request(number * 2 * WINDOW)
    assert spend(budget, 7 * WINDOW) == 1


def test_a_clock_that_steps_back_earns_nothing():
    budget = Budget(ratio=0, minimum=1)
    assert spend(budget, 100.0) == 1
    assert spend(budget, 50.0) == 0
    assert spend(budget, 100.5) == 0


def test_terms_are_compared():
    assert Budget(0.1, 2).same_terms(Budget(0.1, 2))
    assert not Budget(0.1, 2).same_terms(Budget(0.2, 2))

"""How many pools are up decides whether the proxy is sent requests, where it is told so."""

from types import SimpleNamespace

import pytest

from proxy.readiness import LOOK_EVERY, Readiness
from proxy.snapshot import Required


def pool(*states):
    return SimpleNamespace(balancer=SimpleNamespace(backends=[SimpleNamespace(state=state) for state in states]))


def snapshot(pools=0.0, backends=0.0, **made):
    return SimpleNamespace(required=Required(pools, backends), pools=made)


UP, HALF, DOWN, LEAVING = ("up", "up"), ("up", "down"), ("down", "down"), ("draining", "draining")


@pytest.mark.parametrize(
    ("required", "pools", "enough"),
    [
        ((0.0, 0.0), (DOWN, DOWN), True),
        ((0.5, 0.0), (HALF, DOWN), True),
        ((0.51, 0.0), (HALF, DOWN), False),
        ((1.0, 0.0), (HALF, HALF), True),
        ((1.0, 0.5), (HALF, UP), True),
        ((1.0, 0.6), (HALF, UP), False),
        ((0.5, 0.6), (HALF, UP), True),
        ((0.01, 0.0), (DOWN, LEAVING, ()), False),
        ((1.0, 1.0), (), True),
    ],
)
def test_the_share_of_pools_that_are_up(required, pools, enough):
    made = snapshot(*required, **{str(number): pool(*states) for number, states in enumerate(pools)})
    assert Readiness().enough(made, 0.0) is enough


def test_it_counts_now_and_then_and_at_once_after_a_reload():
    readiness, made = Readiness(), snapshot(1.0, web=pool("up"))
    assert readiness.enough(made, 10.0)
    made.pools["web"] = pool("down")
    assert readiness.enough(made, 10.0 + LOOK_EVERY / 2)
    assert not readiness.enough(made, 10.0 + LOOK_EVERY)
    assert readiness.enough(snapshot(0.0, web=pool("down")), 10.0 + LOOK_EVERY)
    assert not readiness.enough(snapshot(1.0, web=pool("down")), 10.0 + LOOK_EVERY)

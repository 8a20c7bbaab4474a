"""bench/fleet: the world is the same for every balancer, and the figures are right where they are known."""

from collections import Counter
from itertools import pairwise

import pytest

from bench.fleet import deal
from bench.fleet.balancers import Consistent, Stateless, Tracking
from bench.fleet.plan import Kind, Plan, World
from bench.fleet.run import run
from bench.fleet.tier import TheTier, layouts

CALM = {"churn": 1e9, "rotation": 1e9, "loss": 1e9, "movers": 0.0}
SMALL = {"instances": 10, "connections": 300, "duration": 200.0}


def test_the_same_seed_is_the_same_world() -> None:
    one, other = ([(happening, happening.kind) for happening in World(Plan(**SMALL)).happenings()] for _ in range(2))
    assert one == other
    assert one != [(happening, happening.kind) for happening in World(Plan(**SMALL, seed=2)).happenings()]


def test_time_goes_forward_and_every_connection_begins() -> None:
    happenings = list(World(Plan(**SMALL)).happenings())
    assert all(first.at <= second.at for first, second in pairwise(happenings))
    kinds = Counter(happening.kind for happening in happenings)
    assert kinds[Kind.INITIAL] == 300
    assert kinds[Kind.JOIN] == 10 + 9  # one every 20 s


@pytest.mark.parametrize("make", [Stateless, Consistent, Tracking, lambda: TheTier(Plan(**SMALL, **CALM), "dcid")])
def test_where_nothing_changes_nothing_is_broken(make) -> None:
    outcome = run(Plan(**SMALL, **CALM), make(), layouts())
    assert outcome.began == 300
    assert outcome.broken == 0
    assert outcome.kept == 1.0


def test_moving_clients_break_what_is_balanced_by_their_address() -> None:
    moving = Plan(**SMALL, **{**CALM, "movers": 1.0, "stay": 20.0})
    assert run(moving, Tracking(), layouts()).kept < 0.5
    forwarded = run(moving, Tracking(), layouts(), forwarding=True)
    assert forwarded.broken == 0
    assert forwarded.forwarded > 0


@pytest.mark.parametrize("initial_key", ["dcid", "client_address"])
def test_the_tier_keeps_all_whose_instance_lives(initial_key) -> None:
    plan = Plan(instances=10, connections=300, movers=0.5, duration=160.0, rotation=60.0, loss=110.0)
    outcome = run(plan, TheTier(plan, initial_key), layouts())
    assert outcome.began == 300
    assert outcome.ended_with_instance > 0
    assert outcome.broken == 0


def test_a_ring_moves_little_and_modulo_moves_most() -> None:
    for moved in deal.moves(keys=5000, backends=20):
        assert moved.ring < moved.least + 0.04
        assert moved.modulo > 0.5 > moved.ring


def test_turns_are_dealt_more_evenly_than_chance() -> None:
    spreads = {one.policy: one for one in deal.spreads(keys=10_000, backends=20)}
    assert spreads["round_robin"].by_count < 1.02
    assert spreads["least_request"].in_flight < spreads["random"].in_flight

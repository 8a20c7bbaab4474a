"""What befalls instances under load costs the requests in flight on a killed one, and nothing else; behind the tier and behind 4-tuples."""

import time

import pytest
from containers.balancer import DRAINING, GONE, UP
from containers.fleet import docker, wait_for
from harness.load import Load

pytestmark = [pytest.mark.speaks("HTTP/1.1", "HTTP/2", "HTTP/3"), pytest.mark.timeout(240)]
LIMIT = 20.0
"""Seconds for one request: longer than anything here is away, shorter than a connection that is gone for good may be asked."""

CLIENTS, STREAMS = 9, 3
"""Of each version: so many that not all come to one of three instances."""

DRAIN = 20.0
"""As in deploy/compose/conf.d: by then an instance cuts what is left."""


@pytest.fixture
def load(authority, front):
    with Load(authority, front.port, clients=CLIENTS, streams=STREAMS, limit=LIMIT, pace=0.045) as running:
        running.more(30)
        yield running


def by_connection(load, since=0.0):
    """Results of each connection, in order."""
    found = {}
    for result in list(load.results):
        if result.at >= since:
            found.setdefault((result.version, result.client, result.connection), []).append(result)
    return found


def instances_of(results):
    return {result.worker for result in results if result.status}


def lost_elsewhere(load, host, dying=(0.0, 0.0)):
    """Requests that were lost, and not on a connection to the instance *host*.

    What came to no instance is among them, but for connections that failed while it was *dying* (from when, until when): begun there.
    """
    return [
        result
        for results in by_connection(load).values()
        if instances_of(results) != {host}
        for result in results
        if result.status != 200 and (instances_of(results) or not dying[0] <= result.at <= dying[1])
    ]


def lost_later(load):
    """Connections that lost more than what may have been in flight: their clients went on asking somebody who was gone."""
    return [name for name, results in by_connection(load).items() if sum(result.status != 200 for result in results) > STREAMS]


def held(load, without, began):
    """Each connection that was there at *began* and belongs to another instance than *without* goes on after it, at that one."""
    kept = 0
    newest = {}  # of each client, at that time
    for (version, client, connection), results in by_connection(load).items():
        if results[0].at < began:
            newest[version, client] = (version, client, connection), results
    for name, results in newest.values():
        if instances_of(results) <= {without}:
            continue
        assert len(instances_of(results)) == 1, f"{name} went from one instance to another"
        if name[0] == "HTTP/3":
            assert results[-1].at > began, f"{name} ended"
            kept += 1
    return kept


def a_victim(load, three):
    """An instance that has some of the HTTP/3 connections, and not all of them: of these, the one that has most requests."""
    results = list(load.results)
    for instance in sorted(three.instances, key=lambda instance: -sum(result.worker == instance.host for result in results)):
        on = [instances_of(results) == {instance.host} for name, results in by_connection(load).items() if name[0] == "HTTP/3"]
        if any(on) and not all(on):
            return instance
    pytest.fail(f"all HTTP/3 connections are at one instance: {load.summary()}")


def test_an_instance_that_is_killed_costs_what_was_in_flight_on_it(three, front, load):
    victim = a_victim(load, three)
    killing = time.monotonic()
    docker("kill", victim.id)
    killed = time.monotonic()
    load.wait(lambda: front.state(victim.address) == GONE, "noticed that it is gone")
    load.more(30)
    docker("start", victim.id)
    three.await_health(victim)
    load.wait(lambda: front.state(victim.address) == UP, "noticed that it is back")
    load.more(30)
    assert held(load, victim.host, killed)
    assert not lost_elsewhere(load, victim.host, (killing, killed)), f"{load.summary()} {front.told()}"
    assert not lost_later(load), f"{load.summary()} {front.told()}"


def test_an_instance_that_is_off_the_network_for_a_moment_loses_nothing(three, front, load):
    victim = a_victim(load, three)
    began = time.monotonic()
    three.cut(victim)
    three.mend(victim)
    load.more(50)
    assert held(load, "", began)
    assert not load.lost, f"{load.summary()} {front.told()}"


def test_an_instance_that_is_paused_holds_up_nobody_else(three, front, load):
    victim = a_victim(load, three)
    paused = time.monotonic()
    docker("pause", victim.id)
    load.wait(lambda: front.state(victim.address) == GONE, "noticed that it is gone")
    load.more(30)
    docker("unpause", victim.id)
    load.wait(lambda: front.state(victim.address) == UP, "noticed that it is back")
    load.more(30)
    assert held(load, victim.host, paused)
    assert not lost_elsewhere(load, victim.host), f"{load.summary()} {front.told()}"
    # Its clients have given up, and told so to others, to which the balancer has moved them: a drain would wait for them.
    docker("kill", victim.id)
    docker("start", victim.id)
    three.await_health(victim)


def test_a_rolling_restart_loses_nothing(three, front, load):
    kept = 0
    for instance in three.instances:
        restarted = time.monotonic()
        docker("stop", "-t", "30", instance.id)
        took = time.monotonic() - restarted
        assert took < DRAIN, f"it waited for a client that was told to go: {front.told()}"
        assert front.state(instance.address) in {DRAINING, GONE}
        docker("start", instance.id)
        three.await_health(instance)
        assert three.instance(instance.host).address == instance.address
        load.wait(lambda address=instance.address: front.state(address) == UP, "noticed that it is back")
        load.more(10)
        kept += held(load, instance.host, restarted)
    assert kept
    assert not load.lost, f"{load.summary()} {front.told()}"


def test_scaled_from_three_to_five_nothing_is_lost_and_no_connection_moves(three, front, load):
    began = time.monotonic()
    old = {instance.host for instance in three.instances}
    three.up(5)
    try:
        front.follow(instance.address for instance in three.instances)
        load.wait(lambda: [front.state(instance.address) for instance in three.instances] == [UP] * 5, "knew all five")
        load.more(30)
        assert held(load, "", began)
        new = {instance.host for instance in three.instances} - old
        with Load(load._authority, load._port, clients=40, streams=1, versions=["HTTP/3"]) as more:
            more.more(100)
        assert len(new) == 2
        assert new <= instances_of(more.results)
        assert not more.lost, more.summary()
    finally:
        three.up(3)
    wait_for(lambda: len(three.containers("qproxy")) == 3, "was three again")
    assert not load.lost, f"{load.summary()} {front.told()}"

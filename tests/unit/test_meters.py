"""The families are declared once, and pools that a reload took away leave no numbers behind."""

from balancer.backend import Backend
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics


class Named:
    """A pool as far as the gauges look."""

    def __init__(self, name, *backends):
        self.name = name
        self.backends = backends


def cells(family):
    return {labels: cell.value for labels, cell in family.cells.items()}


def test_declaring_again_gives_the_same_families():
    metrics = Metrics()
    first, second = ProxyMetrics(metrics), ProxyMetrics(metrics)
    assert first.streams is second.streams
    assert metrics.families["server_up"].cell().value == 0, "who serves says so"
    assert all(
        name.startswith("qproxy_") or name in {"server_up", "sni_resolutions_total", "http3_connections_total"} for name in metrics.families
    )


def test_counters_end_in_total_and_no_other_family_does():
    metrics = Metrics()
    ProxyMetrics(metrics)
    assert all(name.endswith("_total") == (family.kind == "counter") for name, family in metrics.families.items())


def test_gauges_of_pools_follow_the_state_at_every_reading():
    metrics = Metrics()
    meters = ProxyMetrics(metrics)
    a, b = Backend("http://a"), Backend("http://b")
    b.state = "down"
    a.inflight = 3
    pools = [Named("web", a, b)]
    metrics.before_read.append(meters.show_pools(lambda: pools))
    metrics.collect()
    assert cells(meters.pool_backends) == {("web", "up"): 1, ("web", "down"): 1, ("web", "draining"): 0}
    assert cells(meters.backend_up) == {("web", "http://a"): 1, ("web", "http://b"): 0}
    assert cells(meters.backend_inflight) == {("web", "http://a"): 3, ("web", "http://b"): 0}
    b.state = "up"
    a.inflight = 0
    metrics.collect()
    assert cells(meters.pool_backends) == {("web", "up"): 2, ("web", "down"): 0, ("web", "draining"): 0}
    assert cells(meters.backend_inflight) == {("web", "http://a"): 0, ("web", "http://b"): 0}


def test_a_pool_that_is_gone_is_forgotten():
    metrics = Metrics()
    meters = ProxyMetrics(metrics)
    pools = [Named("old", Backend("http://a")), Named("new", Backend("http://b"))]
    metrics.before_read.append(meters.show_pools(lambda: pools))
    for pool in ("old", "new"):
        meters.upstream_retries.cell(pool).value += 1
        meters.upstream_connects.cell(pool, "ok").value += 1
        meters.upstream_seconds.cell(pool).observe(0.1)
    kept = meters.upstream_retries.cell("new")
    metrics.collect()
    del pools[0]
    metrics.collect()
    labels = {labels for family in metrics.families.values() if "pool" in family.labels for labels in family.cells}
    assert {names[0] for names in labels} == {"new"}
    assert meters.upstream_retries.cell("new") is kept

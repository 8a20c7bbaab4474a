"""The metrics page is read by Prometheus's own parser, and says what was counted."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from proxy.control.metrics import Exposition, read
from proxy.meters import ProxyMetrics
from proxy.observe import Metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def render(metrics: Metrics, accept: str = ""):
    return Exposition().format(read(metrics), accept)


def samples(page: bytes, parser=parse):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in parser(page.decode()) for sample in family.samples
    }


def types(page: bytes):
    return {family.name: family.type for family in parse(page.decode())}


def test_counters_and_gauges():
    metrics = Metrics()
    meters = ProxyMetrics(metrics)
    meters.sni_resolutions.cell("a.example.com").value += 3
    meters.streams.cell("HTTP/2").value += 1
    content_type, page = render(metrics)
    found = samples(page)
    assert content_type.startswith("text/plain")
    assert found["sni_resolutions_total", (("domain", "a.example.com"),)] == 3
    assert found["qproxy_streams_total", (("version", "HTTP/2"),)] == 1
    assert found["server_up", ()] == 0
    assert found["http3_connections_total", ()] == 0
    assert types(page)["qproxy_streams"] == "counter"
    assert types(page)["server_up"] == "gauge"


def test_histograms_are_cumulative():
    metrics = Metrics()
    cell = ProxyMetrics(metrics).upstream_seconds.cell("web")
    for seconds in (0.0001, 0.0005, 0.02, 60.0):
        cell.observe(seconds)
    page = render(metrics)[1]
    found = samples(page)

    def bucket(bound):
        return found["qproxy_upstream_seconds_bucket", (("le", bound), ("pool", "web"))]

    assert [bucket("0.0005"), bucket("0.01"), bucket("0.025"), bucket("10.0"), bucket("+Inf")] == [2, 2, 3, 3, 4]
    assert found["qproxy_upstream_seconds_count", (("pool", "web"),)] == 4
    assert found["qproxy_upstream_seconds_sum", (("pool", "web"),)] == sum((0.0001, 0.0005, 0.02, 60.0))
    assert types(page)["qproxy_upstream_seconds"] == "histogram"


def test_a_histogram_has_the_bounds_of_its_unit():
    metrics = Metrics()
    ProxyMetrics(metrics).quic_congestion_window.cell().observe(20_000)
    found = samples(render(metrics)[1])
    bounds = ("16384.0", "32768.0", "16777216.0")
    assert [found["qproxy_quic_congestion_window_bytes_bucket", (("le", bound),)] for bound in bounds] == [0, 1, 1]
    assert found["qproxy_quic_congestion_window_bytes_sum", ()] == 20_000


def test_every_declared_family_can_be_read_in_both_formats():
    metrics = Metrics()
    ProxyMetrics(metrics)
    for family in metrics.families.values():
        family.cell(*['label "\\\n'] * len(family.labels))
    content_type, page = render(metrics, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    plain = {name for name, _ in samples(render(metrics)[1])}
    opened = {name for name, _ in samples(page, parse_openmetrics)}
    for name, family in metrics.families.items():
        wanted = name + "_count" if family.kind == "histogram" else name
        assert wanted in plain
        assert wanted in opened


def test_the_process_and_its_collector_are_on_the_page():
    names = {name for name, _ in samples(render(Metrics())[1])}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "python_gc_collections_total"} <= names


def test_a_reading_is_a_copy():
    metrics = Metrics()
    cell = metrics.counter("a_total", "A", ()).cell()
    timed = metrics.histogram("b", "B").cell()
    reading = read(metrics)
    cell.value += 1
    timed.observe(1)
    found = samples(Exposition().format(reading)[1])
    assert (found["a_total", ()], found["b_count", ()]) == (0, 0)


def test_hooks_run_before_a_reading():
    metrics = Metrics()
    gauge = metrics.gauge("g", "G").cell()
    metrics.before_read.append(lambda: setattr(gauge, "value", 7))
    assert samples(render(metrics)[1])["g", ()] == 7

"""Numbers of several processes: what one counted outlives it, nothing is counted twice, and nothing runs backwards."""

from proxy.control.merge import Changes, Counted, merged
from proxy.control.metrics import read
from proxy.observe import Metrics


def value(readings, name, *labels):
    (found,) = (dict(reading.values) for reading in readings if reading.name == name)
    return found.get(labels)


class Process:
    """A process that counts, and what the other side knows of it."""

    def __init__(self):
        self.metrics = Metrics()
        self.requests = self.metrics.counter("requests_total", "R", ("host",))
        self.open = self.metrics.gauge("open", "O")
        self.up = self.metrics.gauge("server_up", "U")
        self.seconds = self.metrics.histogram("seconds", "S", bounds=(1.0, 2.0))
        self.changes = Changes()
        self.counted = Counted()

    def tell(self):
        changes = self.changes.of(read(self.metrics))
        self.counted.take(changes)
        return changes


def test_counters_gauges_and_histograms_are_added_up():
    one, other = Process(), Process()
    for process, count in ((one, 3), (other, 4)):
        process.requests.cell("a").value += count
        process.open.cell().value = count
        process.up.cell().value = 1
        process.seconds.cell().observe(count / 2)
        process.tell()
    one.requests.cell("b").value += 1
    one.tell()
    found = merged([one.counted.readings(), other.counted.readings()])
    assert (value(found, "requests_total", "a"), value(found, "requests_total", "b")) == (7, 1)
    assert value(found, "open") == 7
    assert value(found, "server_up") == 1
    assert value(found, "seconds") == ((1.0, 2.0), (0, 2, 0), 3.5)


def test_of_a_bound_the_smallest_says_it_for_all():
    bounds = [4096, 32, 1024]
    processes = []
    for bound in bounds:
        metrics = Metrics()
        metrics.gauge("qproxy_output_bound_bytes", "B").cell().value = bound
        processes.append(read(metrics))
    assert value(merged(processes), "qproxy_output_bound_bytes") == 32


def test_only_what_has_changed_is_told():
    process = Process()
    process.requests.cell("a").value += 1
    process.requests.cell("b").value += 1
    assert [(reading.name, reading.values) for reading, _ in process.tell()] == [("requests_total", [(("a",), 1), (("b",), 1)])]
    assert process.tell() == []
    process.requests.cell("b").value += 1
    assert [(reading.name, reading.values) for reading, _ in process.tell()] == [("requests_total", [(("b",), 2)])]


def test_what_is_no_more_is_told_too():
    process = Process()
    process.requests.cell("a").value += 1
    process.requests.cell("b").value += 1
    process.tell()
    del process.requests.cells["a",]
    process.requests.cell("c").value += 1
    process.tell()
    assert {labels: count for reading in process.counted.readings() for labels, count in reading.values} == {("b",): 1, ("c",): 1}


def test_what_a_process_counted_outlives_it_and_its_gauges_do_not():
    ended, process, later = Counted(), Process(), Process()
    process.requests.cell("a").value += 5
    process.open.cell().value = 2
    process.seconds.cell().observe(9)
    process.tell()
    ended.keep_counts(process.counted)
    later.requests.cell("a").value += 1
    later.tell()
    found = merged([ended.readings(), later.counted.readings()])
    assert value(found, "requests_total", "a") == 6
    assert "open" not in {reading.name for reading in found}
    ended.keep_counts(later.counted)
    assert value(merged([ended.readings()]), "requests_total", "a") == 6
    assert value(merged([ended.readings()]), "seconds") == ((1.0, 2.0), (0, 0, 1), 9)

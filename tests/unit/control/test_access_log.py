"""One line for each exchange, in JSON or for people; nothing a client sends can forge one."""

import os
from dataclasses import fields, replace

import orjson
import pytest

from proxy.control.access_log import BATCH, MAX_PATH, AccessLog, json_line, text_line
from proxy.control.writer import LineWriter
from proxy.meters import AccessRecord
from proxy.observe import Metrics

RECORD = AccessRecord(
    request_id=b"0123456789abcdef",
    time=1_800_000_000.0625,
    listener="127.0.0.1:8443",
    version="HTTP/2",
    method=b"GET",
    host=b"a.example.com:8443",
    path=b"/x?y=1",
    status=200,
    site="a.example.com",
    route="a.example.com/1",
    backend="http://127.0.0.1:9001",
    key=b"\x00\xff",
    client_address="192.0.2.1",
    bytes_in=0,
    bytes_out=12,
    seconds=0.00123456,
    seconds_connect=0.0001,
    seconds_first_byte=0.001,
    attempts=1,
    ended="complete",
    error="",
)


def test_json_says_everything():
    line = json_line(RECORD)
    assert line.endswith(b"}\n")
    assert orjson.loads(line) == {
        "time": "2027-01-15T08:00:00.062Z",
        "request_id": "0123456789abcdef",
        "client_address": "192.0.2.1",
        "listener": "127.0.0.1:8443",
        "version": "HTTP/2",
        "method": "GET",
        "host": "a.example.com:8443",
        "path": "/x?y=1",
        "status": 200,
        "site": "a.example.com",
        "route": "a.example.com/1",
        "backend": "http://127.0.0.1:9001",
        "key": "00ff",
        "attempts": 1,
        "bytes_in": 0,
        "bytes_out": 12,
        "seconds": 0.001235,
        "seconds_connect": 0.0001,
        "seconds_first_byte": 0.001,
        "ended": "complete",
        "error": "",
    }
    assert set(orjson.loads(line)) == {field.name for field in fields(AccessRecord)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            (
                "2027-01-15T08:00:00.062Z 200 GET a.example.com:8443/x?y=1 HTTP/2 1.2 ms 12 B"
                " -> http://127.0.0.1:9001 (a.example.com/1) for 192.0.2.1 id 0123456789abcdef\n"
            ),
        ),
        (
            {"status": 502, "attempts": 2, "seconds": 2.5, "ended": "connect_refused", "error": "refused"},
            (
                "2027-01-15T08:00:00.062Z 502 GET a.example.com:8443/x?y=1 HTTP/2 2.50 s 12 B"
                " -> http://127.0.0.1:9001 (a.example.com/1) after 2 tries for 192.0.2.1 id 0123456789abcdef connect_refused: refused\n"
            ),
        ),
        (
            {"status": 0, "backend": "", "ended": "client: reset"},
            (
                "2027-01-15T08:00:00.062Z --- GET a.example.com:8443/x?y=1 HTTP/2 1.2 ms 12 B"
                " (a.example.com/1) for 192.0.2.1 id 0123456789abcdef client: reset\n"
            ),
        ),
        (
            {"backend": "", "route": "", "ended": "answered"},
            "2027-01-15T08:00:00.062Z 200 GET a.example.com:8443/x?y=1 HTTP/2 1.2 ms 12 B for 192.0.2.1 id 0123456789abcdef\n",
        ),
    ],
)
def test_text_says_what_matters(changes, line):
    assert text_line(replace(RECORD, **changes)).decode() == line


@pytest.mark.parametrize("form", [json_line, text_line])
@pytest.mark.parametrize("field", ["method", "host", "path", "request_id", "ended", "error"])
def test_no_field_forges_a_line_or_draws_on_the_terminal(form, field):
    hostile = "\x1b[2J\n\x9b\r\u202e\x00\x7f"
    value = hostile if field in {"ended", "error"} else hostile.encode()
    line = form(replace(RECORD, **{field: value})).decode()
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


def test_long_fields_are_cut():
    line = json_line(replace(RECORD, path=b"/" * 100_000, host=b"h" * 5000, error="e" * 5000, key=b"k" * 5000))
    assert orjson.loads(line)["path"] == "/" * MAX_PATH + "..."
    assert len(line) < MAX_PATH + 2000


def test_the_date_follows_the_clock():
    times = [orjson.loads(json_line(replace(RECORD, time=time)))["time"] for time in (0.0, 0.9999, 86_400.0, 0.001)]
    assert times == ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.999Z", "1970-01-02T00:00:00.000Z", "1970-01-01T00:00:00.001Z"]


def test_lines_leave_in_batches_and_on_flush():
    reader, descriptor = os.pipe()
    writer = LineWriter(descriptor)
    metrics = Metrics()
    log = AccessLog(writer, metrics, json=True)
    for _ in range(BATCH - 1):
        log.append(RECORD)
    assert writer._queue.empty()
    log.append(RECORD)
    log.append(RECORD)
    log.flush()
    log.flush()
    expected = json_line(RECORD) * (BATCH + 1)
    got = b""
    while len(got) < len(expected):
        got += os.read(reader, 1 << 20)
    assert got == expected
    os.close(reader)
    log.append(RECORD)
    log.flush()
    writer.close()
    metrics.collect()
    assert metrics.families["qproxy_access_log_dropped_total"].cell().value == 1
    os.close(descriptor)

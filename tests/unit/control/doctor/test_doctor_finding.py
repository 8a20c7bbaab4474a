"""How findings are shown: a table for people, a document for programs."""

import json

from proxy.control.doctor.finding import Finding, as_json, as_text

FINDINGS = [
    Finding("failure", "backend", "web http://a", "status 500\x1b[2J", "a healthy answer", "curl -v http://a"),
    Finding("ok", "kernel", "net.core.somaxconn", "4096"),
    Finding("warning", "time", "clock", "not synchronised", "synchronised", "timedatectl set-ntp true"),
]


def test_the_table_has_the_worst_at_its_end_and_nothing_that_moves_a_cursor():
    assert list(as_text(FINDINGS)) == [
        "ok       kernel   net.core.somaxconn  4096",
        "warning  time     clock               not synchronised",
        "                  expected synchronised",
        "                  mend     timedatectl set-ntp true",
        "failure  backend  web http://a        status 500\\x1b[2J",
        "                  expected a healthy answer",
        "                  mend     curl -v http://a",
        "1 ok, 1 warning, 1 failure",
    ]
    assert list(as_text([])) == ["0 ok, 0 warnings, 0 failures"]


def test_the_document():
    document = json.loads(as_json(FINDINGS))
    assert document["summary"] == {"ok": 1, "warning": 1, "failure": 1}
    assert [finding["verdict"] for finding in document["findings"]] == ["failure", "ok", "warning"]
    assert document["findings"][1] == {
        "verdict": "ok",
        "area": "kernel",
        "what": "net.core.somaxconn",
        "found": "4096",
        "expected": "",
        "mend": "",
    }

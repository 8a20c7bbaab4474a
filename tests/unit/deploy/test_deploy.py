"""What is in deploy/ and the Dockerfile is checked by the tools of those who read it, and speaks of metrics that there are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from proxy.cluster.envelope import REFUSALS
from proxy.l4.meters import RESULTS, TABLES
from proxy.l4.routing import DROPS, RULES

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def ran(*command, cwd=ROOT):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics():
    """The names of all metrics, as the sources have them."""
    sources = "".join(file.read_text() for file in (ROOT / "proxy").rglob("*.py"))
    return set(re.findall(r'"((?:qproxy_\w+)|sni_resolutions_total|server_up)"', sources))


def named(query):
    """The names of the proxy's metrics in a query."""
    return {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bqproxy_\w+", query)}


def queries():
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules" / "qproxy.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield pytest.param(rule["expr"], id=rule.get("alert") or rule["record"])


@pytest.mark.parametrize("query", list(queries()))
def test_dashboards_and_rules_ask_for_metrics_that_there_are(query):
    assert named(query) <= metrics()
    assert named(query) or "up{" in query


def test_each_panel_has_a_place_of_its_own_and_the_data_source_of_the_provisioning():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    board = json.loads((DEPLOY / "grafana/dashboards/qproxy.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


@pytest.mark.parametrize("query", list(queries()))
def test_prometheus_can_read_every_query(tmp_path, query):
    text = query.replace("$__rate_interval", "1m")
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "x", "rules": [{"record": "a:b", "expr": text}]}]}))
    ran("promtool", "check", "rules", "rules.yml", cwd=tmp_path)


def test_prometheus_takes_its_configuration_and_the_rules_do_what_they_say():
    ran("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    ran("promtool", "test", "rules", "qproxy.test.yml", cwd=DEPLOY / "prometheus")


def alerts():
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules" / "qproxy.yml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                yield pytest.param(group["name"], rule, id=rule["alert"])


@pytest.mark.parametrize(("group", "rule"), list(alerts()))
def test_each_alert_says_how_bad_it_is_and_those_of_tier_and_cluster_what_to_do(group, rule):
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]
    if group != "qproxy":
        assert rule["for"]
        assert rule["annotations"]["description"]
        assert rule["alert"] in (ROOT / "docs/how-to/run-the-l4-tier.md").read_text()


def test_reasons_and_rules_in_queries_are_those_that_are_counted():
    counted = {"reason": {*DROPS, *REFUSALS}, "result": {*RESULTS, "ok", "failed"}, "rule": {*RULES}, "table": {*TABLES}}
    for query in queries():
        for label, values in re.findall(r'(reason|result|rule|table)=~?"(\w[^"]*)"', query.values[0]):
            assert set(values.split("|")) <= counted[label]


def test_the_dockerfile():
    assert not ran(BIN / "hadolint", "Dockerfile")
    text = (ROOT / "Dockerfile").read_text()
    assert "# syntax" not in text
    assert not re.search(r"--mount|--chmod|<<", text), "the classic builder knows none of these"


def test_what_the_dockerfile_copies_is_let_through():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    text = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text())
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    for name in copied:
        found = name.replace("dis[t]", "dist").rstrip("/")
        assert found in kept
        assert "*" in found or (ROOT / found).exists()

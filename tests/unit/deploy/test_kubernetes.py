"""The manifests are what Kubernetes takes, agree with each other, and hold a configuration that qproxy takes."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from proxy.config.load import load
from proxy.demo.certificates import make

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
FOREIGN = {"kustomization.yaml", "prometheus-adapter.yaml"}
"""Not Kubernetes' own: of kustomize and of the adapter."""
FILES = sorted(file.name for file in FOLDER.glob("*.yaml") if file.name not in FOREIGN)


def read(name):
    (content,) = yaml.safe_load_all((FOLDER / name).read_text())
    return content


@pytest.fixture
def deployment():
    return read("deployment.yaml")["spec"]


@pytest.fixture
def pod(deployment):
    return deployment["template"]["spec"]


@pytest.fixture
def container(pod):
    (found,) = pod["containers"]
    return found


@pytest.fixture
def configuration(tmp_path):
    """As in the ConfigMap, with a certificate that is there."""
    (tmp_path / "tls.crt").write_bytes(make("www.example.com", datetime.now(UTC)))
    (tmp_path / "conf.d").mkdir()
    for name, text in read("configuration.yaml")["data"].items():
        there = text.replace("/certificates/tls.key", str(tmp_path / "tls.crt")).replace("/certificates", str(tmp_path))
        (tmp_path / "conf.d" / name).write_text(there)
    return load(tmp_path / "conf.d", {"AWS_LBC_QUIC_SERVER_ID": "ABEiM0RVZnc="})


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_takes_it(name):
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(FOLDER / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed for resource" in done.stdout + done.stderr


def test_the_kustomization_has_all_of_them_and_one_service_for_clients():
    assert sorted([*read("kustomization.yaml")["resources"], "service.yaml"]) == FILES


def test_all_are_in_one_namespace_which_the_pod_fits(pod, container):
    assert {read(name)["metadata"].get("namespace", "qproxy") for name in FILES} == {"qproxy"}
    assert read("namespace.yaml")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_selectors_select_the_pods(deployment):
    labels = deployment["template"]["metadata"]["labels"]
    services = [read(name)["spec"]["selector"] for name in FILES if name.startswith("service")]
    others = [
        deployment["selector"],
        read("poddisruptionbudget.yaml")["spec"]["selector"],
        read("networkpolicy.yaml")["spec"]["podSelector"],
    ]
    assert all(selector == labels for selector in services + [other["matchLabels"] for other in others])
    assert len(services) == 3


def test_ports_are_the_configuration_s(configuration, container):
    (listener,) = configuration.server.listeners
    ports = {port["name"]: (port["containerPort"], port["protocol"]) for port in container["ports"]}
    assert ports == {
        "tcp": (listener.address[1], "TCP"),
        "quic": (listener.address[1], "UDP"),
        "health": (configuration.server.health.address[1], "TCP"),
        "admin": (configuration.server.admin.address[1], "TCP"),
    }
    for name in FILES:
        if name.startswith("service"):
            for port in read(name)["spec"]["ports"]:
                assert ports[port["targetPort"]][1] == port["protocol"]
    probes = {container[f"{name}Probe"]["httpGet"]["port"] for name in ("readiness", "liveness", "startup")}
    assert probes <= set(ports)
    allowed = [rule["ports"] for rule in read("networkpolicy.yaml")["spec"]["ingress"]]
    assert {(port["port"], port["protocol"]) for ports in allowed for port in ports} == set(ports.values())


def test_there_is_time_for_the_whole_end(configuration, pod, container):
    timeouts = configuration.server.timeouts
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + timeouts.drain_delay + timeouts.drain
    annotations = read("service-aws.yaml")["metadata"]["annotations"]
    check = {key.rpartition("healthcheck-")[2]: value for key, value in annotations.items() if "healthcheck" in key}
    assert timeouts.drain_delay >= (int(check["unhealthy-threshold"]) + 1) * int(check["interval"])
    assert int(check["timeout"]) < int(check["interval"])
    assert (check["port"], check["path"]) == (str(configuration.server.health.address[1]), configuration.server.health.path)


def test_the_server_id_is_that_of_the_aws_controller(configuration, deployment, container):
    ids = configuration.server.quic.connection_ids
    assert (ids.server_id.hex(), ids.nonce, ids.slot, ids.key) == ("0011223344556677", 10, True, None)
    annotations = deployment["template"]["metadata"]["annotations"]
    assert annotations["service.beta.kubernetes.io/aws-load-balancer-quic-enabled-containers"] == container["name"]
    assert read("namespace.yaml")["metadata"]["labels"]["elbv2.k8s.aws/quic-server-id-inject"] == "enabled"
    service = read("service-aws.yaml")
    assert service["metadata"]["annotations"]["service.beta.kubernetes.io/aws-load-balancer-quic-enabled-ports"] == "443"
    assert {port["port"] for port in service["spec"]["ports"]} == {443}


def test_a_rolling_update_on_aws_waits_until_the_load_balancer_has_the_new_pods(deployment):
    assert read("namespace.yaml")["metadata"]["labels"]["elbv2.k8s.aws/pod-readiness-gate-inject"] == "enabled"
    annotations = read("service-aws.yaml")["metadata"]["annotations"]
    assert annotations["service.beta.kubernetes.io/aws-load-balancer-nlb-target-type"] == "ip", "the gate is for no other targets"
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_autoscaler_goes_by_a_metric_that_qproxy_has_and_the_adapter_serves():
    custom, _ = read("hpa.yaml")["spec"]["metrics"]
    (rule,) = read("prometheus-adapter.yaml")["rules"]
    assert custom["pods"]["metric"]["name"] == rule["name"]["as"] == "qproxy_load"
    assert re.match(r"qproxy_load\{", rule["seriesQuery"])
    assert '"qproxy_load"' in (FOLDER.parents[1] / "proxy" / "meters.py").read_text()


def test_limits_that_the_load_is_measured_by_are_set(configuration, container):
    assert configuration.server.overload.lag
    assert configuration.server.overload.exchanges
    assert container["resources"]["limits"]["memory"]

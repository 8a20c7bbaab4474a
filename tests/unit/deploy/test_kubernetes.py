"""The manifests are what Kubernetes takes, agree with each other, and hold a configuration that qproxy takes."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from proxy.cli import main
from proxy.config import gather
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


def mounted(pod, container):
    """Where the container sees each ConfigMap and Secret: by their names."""
    sources = {
        volume["name"]: volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName") for volume in pod["volumes"]
    }
    return {sources[mount["name"]]: mount["mountPath"] for mount in container["volumeMounts"] if sources[mount["name"]]}


def for_other_balancers(text):
    """As the comments say: the second one of the two ``connection_ids`` in the place of the first."""
    changed, first = re.subn(r"^( *)connection_ids:", r"\1# connection_ids:", text, flags=re.MULTILINE)
    changed, second = re.subn(
        r"^( *)# connection_ids: \{server_id: address\}", r"\1connection_ids: {server_id: address}", changed, flags=re.MULTILINE
    )
    assert (first, second) == (1, 1)
    return changed


@pytest.fixture(params=["AWS", "others"])
def balancer(request):
    return request.param


@pytest.fixture
def folder(tmp_path, pod, container, balancer, monkeypatch):
    """As the container finds it: the ConfigMap, and the two Secrets as the README has them made, where the Deployment mounts them."""
    places = mounted(pod, container)
    modes = {volume["secret"]["secretName"]: volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume}
    for path in places.values():
        (tmp_path / path[1:]).mkdir(parents=True)
    pem = make("www.example.com", datetime.now(UTC)).decode()
    cluster = tmp_path / places["qproxy-cluster"][1:] / "cluster.key"
    assert CliRunner().invoke(main, ["keygen", str(cluster)]).exit_code == 0
    cluster.chmod(modes["qproxy-cluster"])
    for name in ("tls.crt", "tls.key"):
        file = tmp_path / places["qproxy-certificate"][1:] / name
        file.write_text(pem)
        file.chmod(modes["qproxy-certificate"])
    here = tmp_path / places["qproxy"][1:]
    for name, text in read("configuration.yaml")["data"].items():
        there = text if balancer == "AWS" or name != "qproxy.yaml" else for_other_balancers(text)
        for secret in modes:
            there = re.sub(rf" {re.escape(places[secret])}/", f" {tmp_path}{places[secret]}/", there)
        (here / name).write_text(there)
    if balancer == "AWS":
        monkeypatch.setenv("AWS_LBC_QUIC_SERVER_ID", "ABEiM0RVZnc=")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(gather, "own_address", lambda: "10.1.0.4")
    return here


@pytest.fixture
def configuration(folder):
    return load(folder, os.environ)


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
        "envelopes": (configuration.server.cluster.address[1], "UDP"),
        "health": (configuration.server.health.address[1], "TCP"),
        "admin": (configuration.server.admin.address[1], "TCP"),
    }
    probes = {container[f"{name}Probe"]["httpGet"]["port"] for name in ("readiness", "liveness", "startup")}
    assert probes <= set(ports)
    for name in ("service.yaml", "service-aws.yaml"):
        assert {port["targetPort"]: (port["port"], port["protocol"]) for port in read(name)["spec"]["ports"]} == {
            "tcp": (443, "TCP"),
            "quic": (443, "UDP"),
        }
    headless = {port["targetPort"]: (port["port"], port["protocol"]) for port in read("service-headless.yaml")["spec"]["ports"]}
    assert headless == {name: port for name, port in ports.items() if name != "health"}


def test_the_policy_lets_clients_and_peers_in_and_only_prometheus_to_the_metrics(container):
    ports = {(port["containerPort"], port["protocol"]): port["name"] for port in container["ports"]}
    ingress = read("networkpolicy.yaml")["spec"]["ingress"]
    allowed = [({ports[port["port"], port["protocol"]] for port in rule["ports"]}, rule.get("from")) for rule in ingress]
    assert allowed == [
        ({"tcp", "quic", "health"}, None),
        ({"envelopes"}, [{"podSelector": {}}]),
        ({"admin"}, [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]),
    ]


def test_qproxy_takes_the_configuration_with_a_key_of_keygen_s(folder, balancer):
    ran = CliRunner().invoke(main, ["check", "-c", str(folder), "--no-running"])
    assert ran.exit_code == 0, ran.output
    form = {
        "AWS": "20 bytes, server 0011223344556677, configuration ID 0, in clear",
        "others": "14 bytes, server 0a010004, configuration ID 0, encrypted",
    }
    assert f"connection IDs: {form[balancer]}\n" in ran.output
    assert "cluster: the key of epoch 0 seals, and none comes after it\n" in ran.output
    assert "warning" not in ran.output.replace("right, 0 warnings", "")


def test_the_secrets_are_those_that_the_readme_makes(pod, container, configuration):
    readme = (FOLDER.parent / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+) --from-file=(\S+)", readme))
    (listed,) = made
    places = mounted(pod, container)
    assert str(configuration.key_file).endswith(f"{places[listed[0]]}/{listed[1]}")
    assert listed[1] in re.findall(r"qproxy keygen (\S+)", readme)
    assert f"get secret {listed[0]} -o 'jsonpath={{.data.{listed[1].replace('.', chr(92) + '.')}}}'" in readme
    (certificate,) = set(re.findall(r"create secret tls (\S+)", readme))
    assert set(places) == {"qproxy", certificate, listed[0]}
    assert container["args"] == ["-c", places[read("configuration.yaml")["metadata"]["name"]]]


def test_secrets_are_root_s_and_readable_for_the_pod_s_group_alone(pod):
    """Kubernetes gives their files to root and to ``fsGroup``."""
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert {volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume} == {0o440}


def test_a_changed_secret_is_a_reload_by_itself(configuration):
    assert configuration.server.watch
    assert configuration.key_file.absolute() in configuration.read


def test_peers_are_all_pods_that_there_are_also_those_that_begin_or_drain(configuration, pod):
    service = read("service-headless.yaml")
    cluster = configuration.server.cluster
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert cluster.peers == [(name, cluster.address[1])]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert {"name": "ndots", "value": "1"} in pod["dnsConfig"]["options"], "else a whole name is asked for under each search domain first"


def test_there_is_time_for_the_whole_end(configuration, pod, container):
    timeouts = configuration.server.timeouts
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + timeouts.drain_delay + timeouts.drain
    annotations = read("service-aws.yaml")["metadata"]["annotations"]
    check = {key.rpartition("healthcheck-")[2]: value for key, value in annotations.items() if "healthcheck" in key}
    assert timeouts.drain_delay >= (int(check["unhealthy-threshold"]) + 1) * int(check["interval"])
    assert int(check["timeout"]) < int(check["interval"])
    assert (check["port"], check["path"]) == (str(configuration.server.health.address[1]), configuration.server.health.path)


@pytest.mark.parametrize("balancer", ["AWS"], indirect=True)
def test_the_server_id_is_that_of_the_aws_controller(configuration, deployment, container):
    ids = configuration.server.quic.connection_ids
    assert (ids.server_id.hex(), ids.nonce, ids.slot, ids.in_clear) == ("0011223344556677", 10, True, True)
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

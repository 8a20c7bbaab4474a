"""The containers of one Compose project, and what may befall them."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMPOSE = Path(sys.executable).parent / "docker-compose"
PROJECT = "qproxy-test"
PORT, HEALTH_PORT, ADMIN_PORT = 8443, 8081, 9090
TIER = "10.83.0.2"
"""The address of the tier, as docker-compose.yml has it."""
LIMIT = 60.0


class DockerError(Exception):
    """A command of Docker's failed; the text says which, and what it said."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A container of the service ``qproxy``."""

    id: str
    name: str
    host: str
    """Its own name for itself, as in X-Instance."""
    address: str
    """In the containers' network."""


def run(*command: str | Path, environment: dict[str, str] | None = None, limit: float = 120) -> str:
    """Standard output. Raises DockerError."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=limit, check=False, cwd=ROOT, env=os.environ | (environment or {})
    )
    if done.returncode:
        msg = f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        raise DockerError(msg)
    return done.stdout


def docker(*arguments: str) -> str:
    return run("docker", *arguments)


def wait_for(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"never {what}"
        time.sleep(0.1)  # the other side is a container: it gives no event; bounded by *limit*


class Fleet:
    """The project; ``up`` and ``down`` are its life."""

    network = f"{PROJECT}_inside"

    def __init__(self, image: str, shared: Path, **environment: str) -> None:
        self._environment = {"QPROXY_IMAGE": image, "QPROXY_SHARED": str(shared), "COMPOSE_PROFILES": "", **environment}

    def compose(self, *arguments: str) -> str:
        files = ["-f", "docker-compose.yml", "-f", "tests/docker/compose.yml"]
        return run(COMPOSE, "-p", PROJECT, "--project-directory", ROOT, *files, *arguments, environment=self._environment)

    def up(self, instances: int = 3) -> None:
        """So many instances, all healthy; what runs already stays as it is, and may have been paused or cut off just before."""
        for instance in self.instances if self.containers("qproxy") else ():
            self.await_health(instance)
        self.compose("up", "-d", "--no-build", "--wait", "--no-recreate", "--scale", f"qproxy={instances}")

    def down(self) -> None:
        """Nothing of it is left, whatever has become of it."""
        for container in docker("ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}", "--filter", "status=paused").split():
            docker("unpause", container)
        self.compose("--profile", "*", "down", "-v", "--remove-orphans", "-t", "2")

    def containers(self, service: str) -> list[str]:
        filters = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
        return docker("ps", "-aq", *(word for text in filters for word in ("--filter", text))).split()

    @property
    def instances(self) -> list[Instance]:
        """Those that are connected, by name."""
        found = []
        for entry in json.loads(docker("inspect", *self.containers("qproxy"))):
            address = (entry["NetworkSettings"]["Networks"].get(self.network) or {}).get("IPAddress")
            if address:
                found.append(Instance(entry["Id"], entry["Name"].lstrip("/"), entry["Config"]["Hostname"], address))
        return sorted(found, key=lambda instance: instance.name)

    def instance(self, host: str) -> Instance:
        """The one that calls itself *host*."""
        (found,) = (instance for instance in self.instances if instance.host == host)
        return found

    def healthy(self, instance: Instance) -> bool:
        """What Docker's own check of it says."""
        state = json.loads(docker("inspect", instance.id))[0]["State"]
        return bool(state["Running"]) and state["Health"]["Status"] == "healthy"

    def await_health(self, instance: Instance) -> None:
        wait_for(lambda: self.healthy(instance), f"{instance.name} was healthy")

    def cut(self, instance: Instance) -> None:
        """Off the network."""
        docker("network", "disconnect", self.network, instance.id)

    def mend(self, instance: Instance) -> None:
        """Back on it, at the same address."""
        docker("network", "connect", "--ip", instance.address, "--alias", "qproxy", self.network, instance.id)

    def reach_from(self, addresses: Iterable[str]) -> None:
        """Have this machine reach the containers from these addresses too, until the network is gone."""
        bridge = "br-" + docker("network", "inspect", "-f", "{{.Id}}", self.network)[:12]
        for address in addresses:
            run("ip", "address", "replace", f"{address}/32", "dev", bridge)

    def logs(self, service: str) -> str:
        """Of all its containers."""
        return self.compose("logs", "--no-color", service)

    def metric(self, instance: Instance, name: str, default: float | None = None) -> float:
        """A number of ``/metrics``: *name* with its labels; *default* where there is none, if that may be."""
        with urllib.request.urlopen(f"http://{instance.address}:{ADMIN_PORT}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith(f"{name} ")]
        if not lines and default is not None:
            return default
        return float(lines[0].rpartition(" ")[2])

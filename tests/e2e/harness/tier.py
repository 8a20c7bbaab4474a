"""The L4 tier as a process of its own, in front of proxies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.authority import Authority
from harness.ports import free_port
from harness.proxy import Proxy


class Tier(Proxy):
    """One running tier: ``l4`` is what stands in its configuration; ``port`` is that of its first listener."""

    def __init__(self, folder: Path, authority: Authority, l4: list[dict[str, Any]], *, server: Mapping[str, Any] | None = None) -> None:
        self.l4 = [{"address": f"127.0.0.1:{free_port()}"} | entry for entry in l4]
        super().__init__(folder, authority, [], server={"listeners": None} | dict(server or {}), answers=False)
        self.port = int(self.l4[0]["address"].rpartition(":")[2])

    def write(self) -> None:
        """Write the configuration as ``server`` and ``l4`` stand now."""
        self._write_file(self.config / "qproxy.yaml", {"server": self.server, "l4": self.l4})

    def state(self, address: str) -> str:
        """How an instance stands at the tier: ``up``, ``down`` or ``draining``."""
        for pool in self.pools():
            for backend in pool["backends"]:
                if backend["backend"] == f"tcp://{address}":
                    return str(backend["state"])
        return "unknown"

    def wait_state(self, address: str, state: str) -> None:
        """Until it stands so."""
        self.wait_for(lambda: self.state(address) == state, f"found {address} {state}")

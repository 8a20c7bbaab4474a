"""Instances with shared keys, each on an address of its own, and what a tier in front of them is told of them."""

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.ports import free_port
from harness.proxy import Proxy
from harness.tier import Tier

HOST = "a.example.com"
OLD = f"3 2020-01-01T00:00:00Z {base64.b64encode(bytes(range(32))).decode()}\n"
"""The key file at the beginning."""

QUICK = {"path": "/health", "interval": "100ms", "timeout": "1s", "rise": 1, "fall": 2}
"""How the tier looks after its instances."""


class Fleet:
    """Instances on addresses of their own with one cluster key file, and what a tier in front of them says of them."""

    def __init__(self, make: Callable[..., Proxy], folder: Path) -> None:
        self._make = make
        self.key_file = folder / "cluster.key"
        self.key_file.write_text(OLD)
        self.key_file.chmod(0o600)
        self.clients, self.envelopes = free_port(), free_port()
        self.proxies: dict[int, Proxy] = {}

    def start(self, number: int, **server: Any) -> Proxy:
        """Instance *number*, at 127.0.0.*number*; it shows its number in X-Instance."""
        host = f"127.0.0.{number}"
        route = {"match": {"path": "/"}, "pool": "web", "headers": {"response": {"set": {"X-Instance": str(number)}}}}
        own = {
            "workers": 1,
            "listeners": [{"address": f"{host}:{self.clients}", "proxy_protocol": {"from": ["127.0.0.0/8"]}}],
            "cluster": {
                "key_file": str(self.key_file),
                "address": f"{host}:{self.envelopes}",
                "peers": [f"127.0.0.{other}:{self.envelopes}" for other in (51, 52, 53)],
            },
            "quic": {"connection_ids": {"server_id": f"{number:08x}", "slot": True}},
        }
        proxy = self.proxies[number] = self._make(server=own | server, sites={HOST: {"routes": [route]}}, answers=False)
        return proxy.start()

    def at(self, number: int) -> str:
        """Where it serves clients."""
        return f"127.0.0.{number}:{self.clients}"

    def entry(self, numbers: Iterable[int] = (), **more: Any) -> dict[str, Any]:
        """A listener of the tier, in front of *numbers*, else of all that were started."""
        endpoints = [self.at(number) for number in numbers or self.proxies]
        return {"instances": {"endpoints": endpoints, "envelope_port": self.envelopes, "health": QUICK}} | more

    def server(self, **more: Any) -> dict[str, Any]:
        """Of the tier."""
        return {"cluster": {"key_file": str(self.key_file)}} | more

    def named(self, tier: Tier, count: int) -> None:
        """Wait until the tier knows so many server IDs, in each of its workers."""
        tier.wait_for(
            lambda: tier.metric("qproxy_l4_server_ids") >= count * max(1.0, tier.metric("qproxy_workers")), "knows its instances", 20
        )

    def close(self) -> None:
        """End all of them."""
        for proxy in self.proxies.values():
            proxy.close()

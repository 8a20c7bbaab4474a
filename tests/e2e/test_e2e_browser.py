"""A browser (Chromium) over HTTP/3."""

import asyncio

import pytest
from harness.clients import Chromium
from harness.relay import Relay

pytestmark = pytest.mark.speaks("HTTP/3")
HOST = "a.example.com"
REBINDINGS = 'qproxy_quic_path_changes_total{kind="rebinding"}'
PAGE = b"""<!DOCTYPE html><html><head><title>a page</title></head><body><script>
setInterval(() => fetch("/hello?" + Math.random()), 100);  // a browser says nothing while it only listens
</script><script src="/stream/%(name)s-script"></script></body></html>"""
FIRST = b"const before = performance.getEntriesByType('navigation')[0].nextHopProtocol;\n"
LAST = b"""const all = performance.getEntriesByType("resource").map(entry => entry.nextHopProtocol);
document.write(`<p>${[before, all.length > 0, all.every(protocol => protocol === "h3")].join(" ")}</p>`);"""


async def test_a_page_loads_and_survives_a_rebinding(start_proxy, authority, backends, tmp_path):
    """The script that the page waits for is half there when the client's port changes. All of it is one connection."""
    proxy = start_proxy(backends=backends[:1])
    name = f"page-{proxy.port}"

    def asked(path):
        return lambda: backends[0].counts().get(path, 0) > 0

    with Relay(proxy.port) as relay, Chromium(authority, tmp_path, proxy.url(f"/stream/{name}", HOST), relay.port) as browser:
        backends[0].push(name, PAGE % {b"name": name.encode()}, end=True)
        await asyncio.to_thread(proxy.wait_for, asked(f"/stream/{name}-script"), "asked for the script", 60)
        backends[0].push(f"{name}-script", FIRST)
        relay.rebind()
        await asyncio.to_thread(proxy.wait_for, lambda: proxy.metrics()[REBINDINGS] >= 1, "saw the rebinding", 30)
        backends[0].push(f"{name}-script", LAST, end=True)
        page = await asyncio.to_thread(browser.page)
    assert "<title>a page</title>" in page
    assert "<p>h3 true true</p>" in page
    assert sum(count for name, count in proxy.metrics().items() if name.startswith("qproxy_connections_total") and "HTTP/3" in name) == 1

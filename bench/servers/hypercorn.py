"""hypercorn of PyPI on uvloop: the Python server with HTTP/3.

It proxies nothing, so it answers from memory and does less than the others.
"""

import subprocess

from bench.servers.backend import SIZES, UPLOAD
from bench.servers.place import Place, Running, UnavailableError, free_port
from bench.servers.variant import PLAIN, Variant

NAME = "hypercorn"
APPLICATION = f"""
BODIES = {{path: b"".join(b"%015d\\n" % number for number in range(size // 16 + 1))[:size] for path, size in {SIZES!r}.items()}}


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == {UPLOAD!r}:
        size, more = 0, True
        while more:
            event = await receive()
            size, more = size + len(event.get("body", b"")), event.get("more_body", False)
        body = b"%d\\n" % size
    else:
        body = BODIES[scope["path"]]
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


def start(place: Place, variant: Variant = PLAIN) -> Running:
    """All versions on one port."""
    if variant.access_log or variant.sites > 1:
        msg = "it has no sites and no access log worth comparing"
        raise UnavailableError(msg)
    port = free_port()
    (place.folder / "bench_application.py").write_text(APPLICATION)
    config = place.folder / "hypercorn.toml"
    config.write_text("keep_alive_max_requests = 1000000000\nkeep_alive_timeout = 3600\nh2_max_concurrent_streams = 128\nbacklog = 4096\n")
    command = [place.python_peer("hypercorn"), "--worker-class", "uvloop", "--config", str(config)]
    command += ["--certfile", str(place.certificate), "--keyfile", str(place.key)]
    command += ["--bind", f"127.0.0.1:{port}", "--quic-bind", f"127.0.0.1:{port}", f"{place.folder}/bench_application.py:app"]
    return place.start("hypercorn", command, dict.fromkeys(("h1", "h2", "h3"), port))


def version(place: Place) -> str:
    """As its package says."""
    script = "import importlib.metadata as m; print(m.version('hypercorn'), '(aioquic', m.version('aioquic') + ')')"
    return subprocess.run([place.python_peer("python"), "-c", script], capture_output=True, text=True, check=True).stdout.strip()

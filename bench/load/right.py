"""Whether answers are right: each server is asked once for everything, by curl, before it is loaded."""

import subprocess
from pathlib import Path

from bench.servers.place import Place, Running, UnavailableError

VERSIONS = {"h1": ("--http1.1", "1.1"), "h2": ("--http2", "2"), "h3": ("--http3-only", "3")}


def check(
    place: Place, server: Running, version: str, path: str, expected: bytes, *, host: str = "a.example.com", upload: Path | None = None
) -> None:
    """Raises UnavailableError where the answer differs from *expected* in version, status or any byte."""
    try:
        program = place.in_debian("curl")
    except UnavailableError:
        if version == "h3":
            raise
        program = ["curl"]
    option, number = VERSIONS[version]
    port = server.ports[version]
    got = place.folder / "answer"
    got.unlink(missing_ok=True)
    command = [*program, "--silent", "--show-error", "--insecure", "--max-time", "20", "--noproxy", "*", option]
    command += ["--resolve", f"{host}:{port}:127.0.0.1", "--output", place.seen(got), "--write-out", "%{http_version} %{http_code}"]
    if upload is not None:
        command += ["--request", "POST", "--header", "Expect:", "--data-binary", f"@{place.seen(upload)}"]
    done = subprocess.run([*command, f"https://{host}:{port}{path}"], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{version} {path}: {done.stderr.strip()}"
        raise UnavailableError(msg)
    if done.stdout != f"{number} 200" or got.read_bytes() != expected:
        msg = f"{version} {path}: a wrong answer ({done.stdout}, {got.stat().st_size} bytes)"
        raise UnavailableError(msg)

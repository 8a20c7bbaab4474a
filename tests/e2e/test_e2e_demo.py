"""`qproxy demo` as a newcomer runs it: it makes its certificates, says what to try, answers, and leaves nothing behind however it ends."""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import curl_cffi
import pytest
from curl_cffi import CurlHttpVersion, CurlOpt
from harness.backends import ROOT
from harness.ports import free_port

from proxy.engine import choice

LIMIT = 60


class Demo:
    """`qproxy demo` on ports of its own, in a session of its own like a terminal's job."""

    def __init__(self, folder: Path, without: Sequence[str] = ()) -> None:
        """*without*: modules that can't be imported, as where they are not installed."""
        self.folder = folder
        self._path = folder / "path"
        self._path.mkdir()
        for module in without:
            (self._path / f"{module}.py").write_text("raise ImportError('taken away')\n")
        shutil.copytree(ROOT / "conf.d", folder / "conf.d")
        self.ports = {port: free_port() for port in (8443, 9090, 9001, 9002, 9003)}
        for file in folder.rglob("*.yaml"):
            text = file.read_text()
            for port, mine in self.ports.items():
                text = text.replace(f":{port}", f":{mine}").replace(f"public_port: {port}", f"public_port: {mine}")
            file.write_text(text)
        self.said = ""

    def start(self) -> "Demo":
        command = [sys.executable, "-m", "proxy", "demo", "-c", "conf.d"]
        environment = os.environ | {"PYTHONPATH": f"{self._path}:{ROOT}", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        return self

    def read_until(self, text: str) -> None:
        end = time.monotonic() + LIMIT
        while text not in self.said:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65536).decode() if readable else ""
            assert piece, f"it never said {text!r}:\n{self.said}"
            self.said += piece

    def children(self) -> dict[str, int]:
        """Process ids by name: backend-1 to backend-3 and qproxy."""
        found = {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and f"\nPPid:\t{self.process.pid}\n" in (process / "status").read_text():
                    command = (process / "cmdline").read_bytes().decode().split("\0")
                    found[command[command.index("--name") + 1] if "--name" in command else "qproxy"] = int(process.name)
        return found

    def wait(self) -> int:
        code = self.process.wait(LIMIT)
        self.said += self.process.stdout.read().decode()
        self.process.stdout.close()
        return code

    def assert_nothing_left(self, children: dict[str, int]) -> None:
        end = time.monotonic() + LIMIT
        while alive := [name for name, pid in children.items() if is_alive(pid)]:
            assert time.monotonic() < end, f"still there: {alive}"
            time.sleep(0.02)  # processes that are no children of ours give no event; bounded by LIMIT
        for port in self.ports.values():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        self.process.stdout.close()


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path)
    try:
        yield demo.start()
    finally:
        demo.close()


@pytest.fixture
def running(demo):
    demo.read_until("Ctrl-C ends")
    return demo


def ask(demo: Demo, host: str, *options: str) -> str:
    command = ["curl", "-sk", "--noproxy", "*", "--max-time", "20", "--resolve", f"*:{demo.ports[8443]}:127.0.0.1", *options]
    return subprocess.run([*command, f"https://{host}:{demo.ports[8443]}/"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("fast", [True, False], ids=["with the native wheel", "without"])
def test_it_runs_with_the_native_wheel_and_without(tmp_path, fast):
    if fast and (missing := choice.find("quic", "native").why_missing()):
        pytest.skip(missing)
    demo = Demo(tmp_path, without=[] if fast else ["qproxy_native"])
    try:
        demo.start().read_until("Ctrl-C ends")
        demo.read_until(f'"quic":"{"native" if fast else "aioquic"} (')
        port = demo.ports[8443]
        with curl_cffi.Session(
            verify=False, http_version=CurlHttpVersion.V3ONLY, curl_options={CurlOpt.RESOLVE: [f"*:{port}:127.0.0.1"]}, trust_env=False
        ) as session:
            assert session.get(f"https://a.example.com:{port}/").text == "Hello from a.example.com (HTTP/3)!\n"
        os.killpg(demo.process.pid, signal.SIGINT)
        assert demo.wait() == 0
    finally:
        demo.close()


def test_it_serves_what_it_says_and_ctrl_c_ends_all_of_it(running):
    assert ask(running, "a.example.com", "--http2") == "Hello from a.example.com (HTTP/2)!\n"
    assert ask(running, "b.example.com", "--http1.1") == "Hello from b.example.com (HTTP/1.1)!\n"
    children = running.children()
    assert sorted(children) == ["backend-1", "backend-2", "backend-3", "qproxy"]
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.wait() == 0
    assert "Traceback" not in running.said
    running.assert_nothing_left(children)


def test_the_curl_lines_that_it_prints_work(running):
    lines = [line.partition("  #")[0].strip() for line in running.said.splitlines() if line.startswith("  curl ") and "--http3" not in line]
    assert len(lines) == 3
    answers = [
        subprocess.run(line.replace("curl ", "curl -s ", 1), shell=True, capture_output=True, text=True, check=True).stdout
        for line in lines
    ]
    assert answers[0] == "Hello from a.example.com (HTTP/2)!\n"
    assert re.match(r"HTTP/\S+ 308 ", answers[1])
    assert "http2_requests_total{" in answers[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_demo_by_a_signal_is_the_end_of_all(running, number):
    children = running.children()
    running.process.send_signal(number)
    code = running.wait()
    assert code == (0 if number == signal.SIGTERM else -number)
    running.assert_nothing_left(children)


@pytest.mark.parametrize("name", ["backend-2", "qproxy"])
def test_a_dead_part_is_named_and_ends_the_others(running, name):
    children = running.children()
    os.kill(children[name], signal.SIGKILL)
    assert running.wait() == 128 + signal.SIGKILL
    assert f"{name} ended with exit code 137" in running.said
    running.assert_nothing_left(children)


def test_a_taken_port_is_one_sentence(tmp_path):
    demo = Demo(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", demo.ports[9002]))
        taken.listen()
        demo.start()
        try:
            assert demo.wait() == 1
        finally:
            demo.close()
    (line,) = demo.said.splitlines()
    assert f"TCP port {demo.ports[9002]} of 127.0.0.1 can't be used: process {os.getpid()} (" in line


def test_the_certificates_are_kept_for_the_next_run(running):
    files = sorted((running.folder / ".state" / "demo").iterdir())
    assert [file.name for file in files] == ["a.example.com.pem", "b.example.com.pem"]
    before = [file.read_bytes() for file in files]
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.wait() == 0
    running.said = ""
    running.start().read_until("Ctrl-C ends")
    assert [file.read_bytes() for file in files] == before

"""What systemd does for a service, and wants to hear from it: sockets that it has bound, and words about its life."""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading

import pytest
from harness import clients

START = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "proxy", "-c", sys.argv[1]])
"""


@pytest.fixture
def notified(tmp_path):
    """What systemd would hear, and its address."""
    said = queue.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))

        def listen():
            while words := sock.recv(4096):
                said.put(words.decode().split("\n"))

        listening = threading.Thread(target=listen)  # always, as systemd does: what nobody takes is lost
        listening.start()
        yield said, str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(tmp_path / "notify"))
        listening.join()


def heard(said, word):
    """What is said until *word* is."""
    words = []
    while not words or word not in words[-1]:
        words.append(said.get(timeout=30))
    return words


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_hears_when_it_is_ready_reloads_and_ends(make_proxy, notified, workers):
    said, address = notified
    proxy = make_proxy(server={"workers": workers}, environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}).start()
    (ready,) = (words for words in heard(said, "READY=1") if "READY=1" in words)
    assert f"MAINPID={proxy.pid}" in ready
    heard(said, "WATCHDOG=1")
    heard(said, "WATCHDOG=1")
    proxy.reload(expect="configuration reloaded")
    assert any(word.startswith("MONOTONIC_USEC=") for word in heard(said, "RELOADING=1")[-1])
    heard(said, "READY=1")
    if workers > 1:
        proxy.process.send_signal(signal.SIGUSR2)
        heard(said, "RELOADING=1")
        assert f"MAINPID={proxy.pid}" in heard(said, "READY=1")[-1]
    assert proxy.terminate() == 0
    heard(said, "STOPPING=1")


@pytest.mark.speaks("HTTP/3")
@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_that_systemd_has_bound_are_used(authority, make_proxy, workers):
    proxy = make_proxy(server={"workers": workers})
    given = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", proxy.port))
        given.append(sock)
    given[0].listen()

    def as_systemd():
        copies = [os.dup(sock.fileno()) for sock in given]
        for at, copy in enumerate(copies):
            os.dup2(copy, 3 + at)
        os.environ["LISTEN_FDS"] = "2"

    with proxy.log_file.open("ab") as log:
        proxy._process = subprocess.Popen(
            [sys.executable, "-c", START, str(proxy.config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[3, 4],
            preexec_fn=as_systemd,  # noqa: PLW1509
            cwd=proxy.folder,
            env=dict(os.environ, LISTEN_FDS="2"),
        )
    for sock in given:
        sock.close()
    proxy.wait_for(lambda: '"event":"ready"' in proxy.logs(), "says that it is ready", 30)
    for version in ("HTTP/1.1", "HTTP/3"):
        for _ in range(4):
            with clients.curl_session(authority, proxy.port, version) as session:
                assert session.get(proxy.url("/hello")).status_code == 200
    assert "sockets from systemd" not in proxy.logs()
    assert proxy.terminate() == 0


PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # <linux/prctl.h>


@pytest.mark.speaks("HTTP/2", "HTTP/3")
def test_it_serves_where_no_memory_may_be_written_and_executed(authority, make_proxy):
    """MemoryDenyWriteExecute= of the unit in deploy/systemd."""
    library = ctypes.CDLL(None)
    program = f"import ctypes; ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) and exit(3)"
    if subprocess.run([sys.executable, "-c", program], check=False).returncode:
        pytest.skip("this kernel is older than 6.3")
    proxy = make_proxy()
    with proxy.log_file.open("ab") as log:
        proxy._process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "-c", str(proxy.config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: library.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0),  # noqa: PLW1509
            cwd=proxy.folder,
        )
    proxy.wait_for(lambda: '"event":"ready"' in proxy.logs(), "says that it is ready", 30)
    for version in clients.VERSIONS:
        with clients.curl_session(authority, proxy.port, version) as session:
            assert session.get(proxy.url("/bytes/1000000")).status_code == 200
    assert proxy.terminate() == 0

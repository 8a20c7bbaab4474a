"""The file by which a running proxy is found: whose it is, how long, and what stands in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.process.pid_file import PID_FILE, PidFile, find, path_of

ROOT = Path(__file__).parents[3]

HOLDER = """
import os, sys
from pathlib import Path
from proxy.process.pid_file import PID_FILE, PidFile
folder, config, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
file = PidFile.inherited() if PID_FILE in os.environ else PidFile.take(folder, config)
if what == "exec":
    os.execve(sys.executable, [sys.executable, __file__, sys.argv[1], sys.argv[2], "hold"], {**os.environ, **file.hand_over()})
if what == "child":
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os._exit(0)
file.tell(ready=True, supervisor=True, admin=["127.0.0.1", 9090])
print(os.getpid(), flush=True)
for line in sys.stdin:
    if line == "close\\n":
        file.close()
    else:
        file.tell_upgrade(*line.split())
    print("told", flush=True)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that has the file."""
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    started = []

    def hold(what="hold", config="conf.d"):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(tmp_path / config), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process, int(process.stdout.readline() or 0)

    yield hold
    for process in started:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def say(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "told\n"


def test_who_runs_is_found_until_it_ends(tmp_path, hold):
    config = tmp_path / "conf.d"
    assert find(tmp_path, config) is None
    process, pid = hold()
    found = find(tmp_path, config)
    assert (found.pid, found.ready, found.supervisor, found.admin, found.upgrade) == (pid, True, True, ("127.0.0.1", 9090), (0, "", ""))
    assert find(tmp_path, tmp_path / "other.d") is None
    process.kill()
    process.wait(10)
    assert json.loads(path_of(tmp_path, config).read_text())["pid"] == pid, "the number stays in the file"
    assert find(tmp_path, config) is None, "and is nobody's"


def test_it_outlives_exec(tmp_path, hold):
    process, pid = hold("exec")
    assert process.pid == pid == find(tmp_path, tmp_path / "conf.d").pid


def test_a_child_does_not_hold_it(tmp_path, hold):
    process, child = hold("child")
    process.wait(10)
    assert Path(f"/proc/{child}").exists()
    assert find(tmp_path, tmp_path / "conf.d") is None


def test_it_is_the_first_ones(tmp_path, hold):
    process, pid = hold()
    with pytest.raises(OSError, match="another proxy with this configuration and state folder has it"):
        PidFile.take(tmp_path, tmp_path / "conf.d")
    assert find(tmp_path, tmp_path / "conf.d").pid == pid
    _, other = hold(config="other.d")
    assert find(tmp_path, tmp_path / "other.d").pid == other
    say(process, "close")
    assert find(tmp_path, tmp_path / "conf.d") is None
    _, third = hold()
    assert find(tmp_path, tmp_path / "conf.d").pid == third


def test_what_is_told_of_upgrades_is_numbered(tmp_path, hold):
    process, _ = hold()
    for number, line in enumerate(("trying", "failed words", "trying", "done"), 1):
        say(process, line)
        state, _, words = line.partition(" ")
        assert find(tmp_path, tmp_path / "conf.d").upgrade == (number, state, words)


@pytest.mark.parametrize("content", ["", "12", '{"pid": 1, "ready": true}', '{"pid": '])
def test_what_another_one_left_there_does_not_count(tmp_path, hold, content):
    """Between the lock and the first word, the file may say anything."""
    process, pid = hold()
    path_of(tmp_path, tmp_path / "conf.d").write_text(content)
    found = find(tmp_path, tmp_path / "conf.d")
    assert (found.pid, found.ready, found.admin) == (pid, False, None)
    say(process, "done")


def test_without_a_file_nothing_is_told(monkeypatch):
    monkeypatch.delenv(PID_FILE, raising=False)
    file = PidFile.inherited()
    file.tell(ready=True)
    file.tell_upgrade("done")
    assert file.hand_over() == {}
    file.close()

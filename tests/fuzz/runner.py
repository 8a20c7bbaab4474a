"""Runs numbered cases for a given time, in a child: an abort, a signal, a hang or a growth of it is a finding like any other.

A program of this folder calls ``main`` with its name and the function that checks one case. ``--case N`` runs that one alone, and what a
finding says is how to do so.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HANG_SECONDS = 20
"""CPU time after which a case is a hang."""
WARM = 0.25
"""The part of the time after which memory is to stand still."""
GROWTH_KIB = 48 << 10
"""What it may grow by after that: a heap that is cut up and the caches of libraries, not what cases leave behind."""


def resident_kib() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * (resource.getpagesize() >> 10)


def child(check: Callable[[int], int], first: int, seconds: float) -> None:
    """Run cases from *first* until the time is over, saying each before it begins."""
    began = time.monotonic()
    case, runs, warm = first, 0, 0
    note = os.open(os.environ["FUZZ_NOTE"], os.O_WRONLY)
    while time.monotonic() < began + seconds:
        os.pwrite(note, b"%20d %20d\n" % (case, runs), 0)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # nobody handles SIGPROF: it ends the child
        runs += check(case)
        case += 1
        if not warm and time.monotonic() > began + seconds * WARM:
            warm = resident_kib()
    os.pwrite(note, b"%20d %20d\n" % (case, runs), 0)
    grown = resident_kib() - warm
    print(f"memory {(warm + grown) >> 10} MiB, {grown >> 10} MiB of them since a quarter of the time", flush=True)
    assert grown < GROWTH_KIB, f"memory grew by {grown} KiB"


def parent(module: str, first: int, seconds: float) -> int:
    """Start children until the time is over; one line for each finding. The exit code."""
    note = Path(tempfile.gettempdir(), f"fuzz.{os.getpid()}")
    start, runs, findings = first, 0, 0
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        note.write_bytes(b" " * 42)
        command = [sys.executable, "-m", module, "--child", "--first", str(first), "--seconds", str(left)]
        done = subprocess.run(command, env=os.environ | {"FUZZ_NOTE": str(note)}, check=False, capture_output=True, text=True)
        words = note.read_bytes().split()
        if not words:
            print(done.stderr, flush=True)
            return 2
        first, runs = int(words[0]), runs + int(words[1])
        if done.stdout:
            print(done.stdout.strip(), flush=True)
        if done.returncode == 0:
            break
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        findings += 1
        print(f"FINDING python -m {module} --case {first}: {name}: {done.stderr.strip()[-2000:]}", flush=True)
        first += 1
    note.unlink()
    print(f"{module}: {first - start} cases, {runs} connections, {findings} findings")
    return 1 if findings else 0


def main(module: str, check: Callable[[int], int], doc: str) -> None:
    """The command line of one program; *check* runs one case and returns how many connections it took."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=1, help="the first case")
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(check(arguments.case), "connections, nothing found")
    elif arguments.child:
        child(check, arguments.first, arguments.seconds)
    else:
        sys.exit(parent(module, arguments.first, arguments.seconds))

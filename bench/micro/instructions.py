"""Machine instructions of one request through each part, counted by callgrind: ``make micro-instructions`` (a minute for each part).

Of two runs of different length the difference counts, so that what happens once for a process is in neither. The figures are the same
whatever else the machine does, which makes them fit to compare two versions of the code; they know nothing of cache misses.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.micro.parts import PARTS, PER_PLAY

ROOT = Path(__file__).parents[2]
PLAYS = (200, 1200)


def count(name: str) -> float:
    """Instructions of one request."""
    found = []
    per_play = PER_PLAY.get(name, 1)
    lengths = [1 + plays // per_play if per_play > 1 else plays for plays in PLAYS]
    for plays in lengths:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", "bench.micro.instructions"]
        command += ["--play", name, "--plays", str(plays)]
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
        collected = re.search(r"Collected : (\d+)", done.stderr)
        assert collected is not None, done.stderr
        found.append(int(collected[1]))
    return (found[1] - found[0]) / (lengths[1] - lengths[0]) / per_play


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--play", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--plays", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play = PARTS[options.play]()
        for _ in range(options.plays):
            play()
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is needed: apt-get install valgrind")
    for name in options.parts or PARTS:
        print(f"{name:16} {count(name) / 1000:8.1f} thousand instructions", flush=True)


if __name__ == "__main__":
    main()

"""What one request through a part costs in calls and in memory: figures that are the same on every machine.

    python -m bench.micro.calls             a line for each part
    python -m bench.micro.calls PART        and every function that is called for one request, and how often

The tests hold the parts to a budget of these (``tests/unit/test_costs.py``): a change that makes the path longer is seen without a clock.
"""

import argparse
import gc
import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from bench.micro.parts import HELD, PARTS, PER_PLAY, Play

WARM = 200
"""Plays before anything is counted: caches of field names are full then, and lists have their size."""

PLAYS = 16
"""Plays that are counted: what only some requests pay is shared out."""


@dataclass(frozen=True)
class Cost:
    """Of one request."""

    python: float
    """Calls of functions written in Python."""
    c: float
    """Calls of functions written in C that go through the interpreter; operators and constructors of built-in types are none."""
    peak: float
    """Bytes allocated at once, at most, beyond those of before."""
    kept: float
    """Memory blocks that stay behind."""


def calls(play: Play, plays: int) -> Counter[tuple[str, str]]:
    """How often each function was called: ``call`` or ``c_call``, and where it is."""
    found: Counter[tuple[str, str]] = Counter()

    def note(frame, event, argument) -> None:
        if event == "call":
            code = frame.f_code
            found[event, f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno} {code.co_qualname}"] += 1
        elif event == "c_call":
            found[event, getattr(argument, "__qualname__", repr(argument))] += 1

    sys.setprofile(note)
    for _ in range(plays):
        play()
    sys.setprofile(None)
    found["c_call", "setprofile"] -= 1
    return found


@contextmanager
def without_collector() -> Iterator[None]:
    """Collections come when they come: none while something is counted."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cost(name: str) -> Cost:
    """The cost of one request through the part *name*."""
    play = PARTS[name]()
    requests = PLAYS * PER_PLAY.get(name, 1)
    for _ in range(WARM):
        play()
    with without_collector():
        found = calls(play, PLAYS)
        before = sys.getallocatedblocks()
        for _ in range(PLAYS):
            play()
        kept = sys.getallocatedblocks() - before
        tracemalloc.start()
        play()  # what it frees of before is not traced
        present = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        play()
        peak = tracemalloc.get_traced_memory()[1] - present
        tracemalloc.stop()
    total = Counter(event for event, _ in found.elements())
    return Cost(total["call"] / requests, total["c_call"] / requests, peak / PER_PLAY.get(name, 1), kept / requests)


def held(name: str) -> float:
    """Bytes that Python holds for one idle connection of the kind *name*."""
    make = HELD[name]()
    before = [make() for _ in range(WARM)]
    with without_collector():
        tracemalloc.start()
        made = [make() for _ in range(WARM)]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert len(before) == len(made)
    return size / WARM


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", action="store_true", help="one object with the costs of all parts, for programs")
    options = parser.parse_args()
    if options.json:
        print(json.dumps({"request": {name: asdict(cost(name)) for name in PARTS}, "connection": {name: held(name) for name in HELD}}))
        return
    for name in () if options.parts else HELD:
        print(f"{name}: {held(name):.0f} bytes held by an idle connection")
    for name in options.parts or PARTS:
        told = cost(name)
        print(f"{name}: {told.python:.2f} Python calls, {told.c:.2f} C calls, {told.peak:.0f} bytes at once, {told.kept:.3f} blocks kept")
        if options.parts:
            play = PARTS[name]()
            for _ in range(WARM):
                play()
            for (event, where), count in calls(play, PLAYS).most_common():
                print(f"  {count / PLAYS / PER_PLAY.get(name, 1):6.2f}  {'C ' if event == 'c_call' else '  '}{where}")


if __name__ == "__main__":
    main()

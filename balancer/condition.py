"""What the balancer holds of a backend: health and draining together.

A module of its own, since mypyc can't compile an enum with values of its own.
"""

from enum import Enum


class Condition(Enum):
    """Health and draining together; the first word is what people and metrics are told."""

    UP = "up"
    DOWN = "down"
    DRAINING = "draining"
    DRAINING_DOWN = "draining down"
    """Draining, and unhealthy besides: it goes down, and not up, when the draining is called off."""

    def __init__(self, words: str) -> None:
        self.shown = words.partition(" ")[0]
        self.usable = words == "up"
        """Whether new requests may go there."""

"""A seeded source of random choices: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

For spreading load, and for nothing that an attacker must not guess. Of its own because pure parts import no ``random``: two pools
with one seed choose alike, in a test as on the road.
"""

_MASK = (1 << 64) - 1


class SplitMix:
    """A stream of 64-bit numbers."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, bound: int) -> int:
        """A number of 0 to *bound* - 1; *bound* is at least 1, and so far under 2**64 that its bias does not show."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((state ^ (state >> 31)) * bound) >> 64

    def fork(self) -> "SplitMix":
        """Another one that goes on from here: for looking ahead."""
        return SplitMix(self._state)

"""A consistent-hash ring: which backend owns a key, and which ones come after it.

Knows names, weights and keys; no health and no pool. uhashring's MetaRing places the points (``name-0``, ``name-1`` ...) and our keyed
hash says where: the default Ketama ring would scale each node's points by the total weight, so that removing one node moved the keys of
others. A node's points depend on nothing but its name and weight, hence a change of the nodes moves only the share of what changed, and
their order does not matter. The walk is ours: uhashring's builds a dict per node and costs ten times as much.
"""

from bisect import bisect
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain, islice
from typing import TypeAlias
from weakref import WeakValueDictionary

from uhashring import HashRing

POINTS = 160
"""Points for each unit of weight: shares deviate by about 1/sqrt(POINTS), 8 %. Changing it moves keys."""

MAX_POINTS = 400_000
"""Points of one ring (20 MB, under a second to build). Where the weights add up to more than MAX_POINTS / POINTS = 2,500, each unit has
half as many, or a quarter and so on; only a change across such a step moves the keys of others."""

AT_FIRST_USE = 4_000
"""Points of a ring that is placed no sooner than it is needed: 25 nodes, 3 ms. A larger one is placed when it is made."""

Nodes: TypeAlias = tuple[tuple[str, int], ...]
"""Name and weight of each."""


class Ring:
    """An immutable ring over *nodes*; owners are given as positions in *nodes*.

    Raises ValueError for a name that stands twice, a weight under 1, or weights of more than ``MAX_POINTS`` together. *secret*: at most 64
    bytes. A small ring is placed when it is first asked (``AT_FIRST_USE``): of ten thousand sites' pools few see a request at once.
    """

    __slots__ = ("__weakref__", "_copy", "_nodes", "_points", "_unit", "owners", "size")

    _points: list[int]
    owners: list[int]
    """The owner of each point, in the ring's order."""

    def __init__(self, nodes: Nodes, secret: bytes) -> None:
        self._unit = _points_of_a_unit(nodes)
        self._nodes = nodes
        self.size = len(nodes)
        keyed = blake2b(digest_size=8, key=secret, person=b"qproxy-ring")
        self._copy = keyed.copy  # a copy of the keyed state costs half of what keying anew does
        if sum(weight for _, weight in nodes) * self._unit > AT_FIRST_USE:
            self._place()

    def __getattr__(self, name: str) -> list[int]:
        """Place the points when they are first read. A slot that is filled never comes here: ``position`` has no question to ask."""
        if name not in ("_points", "owners"):
            raise AttributeError(name)
        self._place()
        placed: list[int] = object.__getattribute__(self, name)
        return placed

    def _place(self) -> None:
        def place(point: str) -> int:
            return self._hash(point.encode())

        index = {name: position for position, (name, _) in enumerate(self._nodes)}
        # sorted, so that even two points on one spot (once in 2**64 pairs) fall out the same for any order of the nodes
        nodes = {name: {"weight": weight, "vnodes": self._unit} for name, weight in sorted(self._nodes)}
        placed = HashRing(nodes, hash_fn=place).get_points()
        self._points = [point for point, _ in placed]
        self.owners = [index[name] for _, name in placed]

    def position(self, key: bytes) -> int:
        """Where in ``owners`` the owner of *key* stands. The ring must not be empty."""
        found = bisect(self._points, self._hash(key))
        return found if found < len(self._points) else 0

    def after(self, position: int) -> Iterator[int]:
        """The other owners behind *position*, each once, in the ring's order."""
        seen = {self.owners[position]}
        left = self.size - 1
        for owner in chain(islice(self.owners, position + 1, None), islice(self.owners, position)):
            if not left:
                return
            if owner not in seen:
                seen.add(owner)
                left -= 1
                yield owner

    def _hash(self, data: bytes) -> int:
        state = self._copy()
        state.update(data)
        return int.from_bytes(state.digest(), "big")


def shared_ring(nodes: Nodes, secret: bytes) -> Ring:
    """The ring for *nodes*; one that somebody still holds is given again, so that a reload does not build what it has."""
    found = _rings.get((nodes, secret))
    if found is None:
        found = _rings[nodes, secret] = Ring(nodes, secret)
    return found


_rings: WeakValueDictionary[tuple[Nodes, bytes], Ring] = WeakValueDictionary()


def _points_of_a_unit(nodes: Nodes) -> int:
    if len({name for name, _ in nodes}) != len(nodes):
        msg = "a name stands twice in a ring"
        raise ValueError(msg)
    if any(weight < 1 for _, weight in nodes):
        msg = "weights are whole numbers of 1 and more"
        raise ValueError(msg)
    total = sum(weight for _, weight in nodes)
    if total > MAX_POINTS:
        msg = f"the weights of a ring add up to {total}, more than {MAX_POINTS}"
        raise ValueError(msg)
    points = POINTS
    while total * points > MAX_POINTS:
        points //= 2
    return points

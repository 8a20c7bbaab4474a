"""How loaded a worker is, in one number, and which new requests it turns away for that.

Takes readings and gives decisions: knows no clock, no loop and no file. ``process/pressure.py`` reads, and publishes it to the exchanges
(``Services.shedding``) while there is something to shed, and only then: a worker with nothing to shed pays one test for each request.

Each part has a limit of its own, and the *pressure* is the largest share of one. Above 1 the *level* rises at each look, below it falls, so
that it comes to rest where what is served is about what can be. It is in percent: 30 turns three of ten requests of class ``low`` away, 150
all of these and half of ``normal``. At 200 it ends, for class ``high`` is always served, unless memory is at its limit: then nothing is.
"""

from proxy.message import Headers
from proxy.meters import ProxyMetrics
from proxy.observe import Log
from proxy.policy.access import Networks
from proxy.snapshot import CLASSES, HIGH, Overload

RISE = 10
"""Of the level at a look, for each whole of pressure."""

EASED = 0.95
"""Share of the pressure at the last look below which it is going down by itself."""

MOST_RISE = 50
"""Of the level at a look: a single bad one, as after a reload of ten thousand sites, is no reason to turn everybody away."""

FALL = 5
"""Of the level at a look."""

TOP = 100 * HIGH
"""The level at which all is turned away that is below the highest class."""

CALM = 50
"""The level down to which a worker counts as overloaded, once it was above 100."""

REST = 5.0
"""Seconds without anything to shed before a worker counts as normal again."""

MEMORY_SHEDS = 0.9
"""Share of the memory limit at which shedding begins."""

MEMORY_AGAIN = 0.95
"""Share of the memory limit below which connections are accepted again."""

SHORTEST_WAIT, LONGEST_WAIT = 2.0, 30.0
"""Seconds of an overload that Retry-After counts with: it lasts as long again as it has lasted, these at least and at most."""

GOLDEN = 0.618034
"""Its multiples, modulo 1, lie evenly, wherever one stops."""

STATES = ("normal", "busy", "overloaded")


class Load:
    """The load of one worker. ``look`` is called ten times a second or so, ``sheds`` for each request while ``shedding``."""

    def __init__(self, settings: Overload, trusted: Networks, meters: ProxyMetrics, log: Log) -> None:
        self._settings = settings
        self._trusted = trusted
        self._log = log
        self._parts = meters.load
        self._states = {state: meters.load_state.cell(state) for state in STATES}
        self._shed = [meters.shed.cell(name) for name in CLASSES]
        self._owed = [0] * len(CLASSES)
        """Of each class, the percentage of a request that is to be turned away and was not yet."""
        self._pressure = 0.0
        self.level = 0
        self.full = False
        """Memory is at its limit: no connection is to be accepted and no request to be served."""
        self.state = "normal"
        self._states["normal"].value = 1.0
        self._rested_since = float("-inf")
        self._now = self._busy_since = 0.0
        self._turn = 0.0

    @property
    def shedding(self) -> bool:
        """Whether any request is to be turned away."""
        return self.level > 0

    @property
    def wanted(self) -> bool:
        """Whether there is a limit, so that it has to ``look``."""
        settings = self._settings
        return bool(settings.lag or settings.memory or settings.exchanges)

    def replace(self, settings: Overload, trusted: Networks) -> None:
        """Take the limits of a new configuration, from the next look on."""
        self._settings = settings
        self._trusted = trusted
        self._parts.cells.clear()

    def look(self, lag: float, memory: int, exchanges: int, now: float) -> None:
        """Take new readings: seconds that the loop is behind, bytes of resident memory, requests in progress."""
        settings = self._settings
        self._now = now
        pressure = 0.0
        if settings.lag:
            pressure = self._part("lag", lag / settings.lag)
        if settings.exchanges:
            pressure = max(pressure, self._part("exchanges", exchanges / settings.exchanges))
        if settings.memory:
            share = self._part("memory", memory / settings.memory)
            pressure = max(pressure, share / MEMORY_SHEDS)
            self.full = share >= (MEMORY_AGAIN if self.full else 1.0)
        else:
            self.full = False
        if pressure >= 1:
            # a backlog that goes down by what is turned away already needs no more than that
            if pressure >= EASED * self._pressure:
                self.level = min(TOP, self.level + min(MOST_RISE, int(RISE * pressure)))
        else:
            self.level = max(0, self.level - FALL)
        if self.full:
            self.level = TOP
        self._pressure = pressure
        self._settle(pressure, now)

    def sheds(self, priority: int, headers: Headers, peer: str) -> bool:
        """Whether to turn a new request away, which counts it then. *priority* is its route's class, *peer* the address it came from."""
        if self._settings.header is not None:
            priority = self._claimed(self._settings.header, priority, headers, peer)
        share = self.level - 100 * priority
        if not self.full and share < 100:
            if share <= 0:
                return False
            self._owed[priority] += share
            if self._owed[priority] < 100:
                return False
            self._owed[priority] -= 100
        self._shed[priority].value += 1
        return True

    def retry_after(self) -> int:
        """Seconds after which a request that is turned away now does well to come again.

        As long again as the overload has lasted, and up to twice that, evenly spread: those who were turned away together come one by one.
        """
        lasts = min(LONGEST_WAIT, max(SHORTEST_WAIT, self._now - self._busy_since))
        self._turn = (self._turn + GOLDEN) % 1.0
        return round(lasts * (1.0 + self._turn))

    def _claimed(self, name: bytes, priority: int, headers: Headers, peer: str) -> int:
        """The class that the request claims for itself: anybody may have a lower one, a higher one only whom we trust."""
        for field, value in headers:
            if field == name:
                claimed = _BY_NAME.get(value.lower())
                if claimed is not None and (claimed < priority or peer in self._trusted):
                    return claimed
        return priority

    def _part(self, name: str, share: float) -> float:
        self._parts.cell(name).value = share
        return share

    def _settle(self, pressure: float, now: float) -> None:
        """The state, with its changes told. A worse one comes at once, a better one takes its time."""
        if self.level > 0:
            self._rested_since = now
        if self.level > 100 or (self.state == "overloaded" and self.level > CALM):
            state = "overloaded"
        elif self.level > 0 or (self.state != "normal" and now < self._rested_since + REST):
            state = "busy"
        else:
            state = "normal"
        if state == self.state:
            return
        if self.state == "normal":
            self._busy_since = now
        self._states[self.state].value = 0.0
        self._states[state].value = 1.0
        say = self._log.warning if state == "overloaded" else self._log.info
        shed = [int(cell.value) for cell in self._shed]
        say("load changed", state=state, before=self.state, pressure=round(pressure, 2), shed=dict(zip(CLASSES, shed, strict=True)))
        self.state = state


_BY_NAME = {name.encode(): number for number, name in enumerate(CLASSES)}

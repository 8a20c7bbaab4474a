"""What shows of the keys of a cluster: which one seals, and whether an old one still opens anything.

Knows epochs, and no key.
"""

from collections.abc import Callable

from proxy.keys import Keyring, Purpose
from proxy.observe import Metrics

KINDS = {Purpose.TICKET: "ticket", Purpose.RETRY: "token", Purpose.ENVELOPE: "envelope"}
"""What is counted when it is opened, by what its key is for."""


class KeyMeters:
    """Those of one process, where *keys* are shared with others; else there are none. *wall*: seconds since 1970."""

    def __init__(self, metrics: Metrics, keys: Keyring, wall: Callable[[], float]) -> None:
        self._keys, self._wall = keys, wall
        self._present = metrics.gauge(
            "qproxy_cluster_keys",
            "Workers that have the cluster's key of this epoch, by what it does there (next: it has not begun; seals; opens, and no more)",
            ("epoch", "state"),
        )
        self._opened = metrics.counter(
            "qproxy_cluster_key_opened_total",
            "What was opened with the cluster's keys (ticket: of HTTP/3 sessions; token: of Retry; envelope), by epoch",
            ("epoch", "kind"),
        )

    def show(self) -> None:
        """A hook for ``Metrics.before_read``."""
        keys = self._keys.keys
        self._present.cells.clear()
        if not keys.shared:
            return
        now = self._wall()
        sealing = keys.sealing(now)
        for key in keys.keys:
            state = "seals" if key is sealing else "opens" if key.begin <= sealing.begin else "next"
            self._present.cell(str(key.epoch), state).value = 1.0
            for purpose, kind in KINDS.items():
                self._opened.cell(str(key.epoch), kind).value = self._keys.opened[purpose][key.epoch]

"""QUIC and HTTP/3 by the wheel ``qproxy-native``: quiche, behind the verbs of ``engine/seam.py``.

Says what the extension can't know: which heads are valid, which connection IDs are ours, what our reasons are on the wire. Everything
else is in native/src. Its clock is the system's own (CLOCK_MONOTONIC): ``now`` only translates deadlines.

Importing this fails where the wheel is not installed.
"""

from collections.abc import Callable, Sequence
from typing import Self

import qproxy_native

from proxy.engine import events
from proxy.engine.events import Event, Rejected
from proxy.engine.h3 import RESET_CODES
from proxy.engine.quic import packets
from proxy.engine.quic.gate import Arrival, Gate
from proxy.engine.quic.ids import Minter, Routable
from proxy.engine.quic.resets import Resets
from proxy.engine.quic.sessions import Sessions, configuration_epoch
from proxy.engine.quic.settings import CERTIFICATE_COMPRESSIONS, QuicSettings
from proxy.engine.quic.strays import Strays, StrayVerbs
from proxy.engine.quic.tickets import LIFETIME, TICKETS, Tickets
from proxy.engine.seam import HIGH_WATER, LOW_WATER, EngineLimits, FirstPackets, Handle, Select, Tracer, Transmit
from proxy.engine.validate import Malformed, pseudo_request, trailers
from proxy.errors import Reset
from proxy.keys import Keyring
from proxy.message import Address, Headers

LIBRARIES = {name: version for name, version in qproxy_native.versions().items() if name != "qproxy-native"}
"""What is built into the wheel, for ``qproxy --version``."""

AUTO_CONGESTION_CONTROL = "cubic"
"""What ``auto`` means here: the standard (RFC 9438). bbr is far ahead on paths that lose packets without being full, and keeps queues
short; what stands against it is in docs/design/2026-11-23-native-quic.md."""


class NativeEndpoint(qproxy_native.Endpoint, StrayVerbs):
    """Implements ``seam.FastEndpoint``. The arguments are those of ``QuicEndpoint``."""

    version = "HTTP/3"
    _resets: Resets
    _gate: Gate
    _mint: Minter
    _strays: Strays

    def __new__(  # noqa: PLR0913  # the signature that the engines share
        cls,
        select: Select,
        limits: EngineLimits,
        settings: QuicSettings,
        keys: Keyring,
        *,
        random_bytes: Callable[[int], bytes] = bytes,
        admit: Callable[[Handle, Address], bool] | None = None,
        tickets: Tickets | None = None,
        wall: Callable[[], float] = float,
        trace: Tracer | None = None,
    ) -> Self:
        """See ``QuicEndpoint``."""
        mint = Minter(keys, random_bytes, settings.routable, settings.slot, settings.known)
        resets = Resets(mint, random_bytes)
        strays = Strays(mint, settings.slot)
        gate = Gate(settings, keys, mint, random_bytes, wall)
        control, compression = settings.congestion_control, settings.certificate_compression
        self = super().__new__(
            cls,
            {
                "begin": Sessions(select, keys, wall, tickets, configuration_epoch("native", limits, settings)).begin,
                "tickets": (TICKETS, LIFETIME) if tickets is not None else None,
                "mint": mint,
                "cid_bytes": mint.cid_bytes,
                "reset": resets.answer,
                "stray": strays.keep,
                "judge": judging(gate),
                "enter": gate.enter,
                "leave": lambda handle, complete: gate.leave(handle, complete=complete),
                "admit": admit,
                "make_head": head_maker(limits),
                "make_trailers": trailers_maker(limits),
                "refuse": refuser(mint),
                "events": events,
                "transmit": Transmit,
                "trace": trace,
                "streams": limits.streams,
                "header_count": limits.header_count,
                "header_bytes": limits.header_bytes,
                "stream_window": limits.stream_window,
                "connection_window": limits.connection_window,
                "max_stream_window": max(settings.max_stream_window, limits.stream_window),
                "max_connection_window": max(settings.max_connection_window, limits.connection_window),
                "high_water": HIGH_WATER,
                "low_water": LOW_WATER,
                "output": limits.output,
                "idle_timeout": settings.idle_timeout,
                "keep_alive": settings.keep_alive,
                "keep_alive_idle": settings.keep_alive_idle,
                "handshake_timeout": settings.handshake_timeout,
                "connections": settings.connections,
                "max_datagram_size": settings.max_datagram_size or 0,
                "key_packets": settings.key_packets,
                "migration": settings.migration,
                "certificate_compression": list(CERTIFICATE_COMPRESSIONS if compression is None else compression),
                "congestion_control": AUTO_CONGESTION_CONTROL if control == "auto" else control,
            },
        )
        self._resets = resets
        self._gate = gate
        self._mint = mint
        self._strays = strays
        return self

    def _watch(self) -> None:
        """What ``stray`` is asked about: whatever may name one of them.

        Of a worker by its configuration ID, its length and its last byte; of another instance by the first two.
        """
        strays, mint = self._strays, self._mint
        self.watch_strays(sorted(strays.siblings), mint.slotted, mint.routable if strays.others is not None else [])

    def change_connection_ids(self, routable: Routable | None, known: Sequence[Routable] = ()) -> bool:
        """See ``seam.Endpoint``."""
        changed = self._mint.change(routable, known)
        if changed:
            self.begin_generation(self._mint.cid_bytes)
        self._watch()
        return changed

    @property
    def handshakes(self) -> int:
        """Handshakes in progress."""
        return self._gate.handshakes

    def first_packets(self, now: float) -> FirstPackets:
        """How it went with clients that nobody knew yet."""
        return self._gate.first_packets(now)

    @property
    def resets_sent(self) -> int:
        """Stateless resets."""
        return self._resets.sent

    def reset(self, connection: Handle, stream: int, reason: Reset) -> None:
        """Cut one stream."""
        self.reset_stream(connection, stream, RESET_CODES[reason])

    def close(self, connection: Handle, reason: Reset) -> None:
        """Close the connection at once."""
        self.close_connection(connection, RESET_CODES[reason], reason.value)


def head_maker(limits: EngineLimits) -> Callable[[int, Headers, bool], tuple[Event, int, int, bool]]:
    """Turns a request's header section into its event, and says what the engine has to know of it."""

    def make_head(stream: int, fields: Headers, end: bool) -> tuple[Event, int, int, bool]:
        try:
            head = pseudo_request(stream, fields, limits, end=end)
        except Malformed as error:
            return Rejected(stream, error.status, error.reason, error.detail), error.status, -1, False
        length = head.content_length
        return head, 0, -1 if length is None else length, head.method == b"HEAD"

    return make_head


def trailers_maker(limits: EngineLimits) -> Callable[[int, Headers], Headers | Rejected]:
    """Turns a request's trailer section into what is kept of it, or into its rejection."""

    def make_trailers(stream: int, fields: Headers) -> Headers | Rejected:
        try:
            return trailers(fields, limits)
        except Malformed as error:
            return Rejected(stream, error.status, error.reason, error.detail)

    return make_trailers


def judging(gate: Gate) -> Callable[[bytes, Address, float, bool], tuple[bytes | None, bytes | None, bytes | None]]:
    """Says by what to answer a client's first datagram.

    Or lets it in: by the destination ID of its very first packet, and the source ID of the Retry packet that it answers. Or says nothing.
    """

    def judge(datagram: bytes, peer: Address, now: float, may_answer: bool) -> tuple[bytes | None, bytes | None, bytes | None]:
        header = packets.read_long_header(datagram)
        judged = gate.judge(header, peer, now, may_answer=may_answer) if header and header.initial else None
        if isinstance(judged, Arrival):
            return None, judged.original, judged.retry_source
        return judged, None, None

    return judge


def refuser(mint: Minter) -> Callable[[bytes], bytes | None]:
    """Answers a client's first datagram with CONNECTION_REFUSED."""

    def refuse(datagram: bytes) -> bytes | None:
        header = packets.read_long_header(datagram)
        return packets.refusal(header, mint()[0], packets.CONNECTION_REFUSED) if header else None

    return refuse

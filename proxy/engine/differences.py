"""Where engines of one kind rightly differ: the one table that the end-to-end tests and docs/reference/engines.md read.

What is not in it is the same on every engine. Knows names and sentences only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.engine.choice import AUTO, AUTO_H2, AUTO_QUIC, ENGINES, KINDS, Kind

TITLES: Mapping[Kind, str] = {"h2": "HTTP/2", "quic": "QUIC and HTTP/3"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that engines do differently, and why that is right."""

    kind: Kind
    what: str
    does: Mapping[str, str]
    """By engine."""
    why: str


DIFFERENCES: Mapping[str, Difference] = {
    "refusals": Difference(
        "h2",
        "The reason under which a malformed message is counted (`qproxy_rejected_total`)",
        {"h2": "the rule that it broke", "ngh2": "`protocol`, where the library itself refused it"},
        "libnghttp2 looks at a message before our validator does, and does not say what it disliked.",
    ),
    "extended CONNECT": Difference(
        "h2",
        "A request with `:protocol`",
        {"h2": "answered with 501", "ngh2": "its stream is reset"},
        "We offer no extended CONNECT, so libnghttp2 calls it malformed, as RFC 8441, section 3, has it.",
    ),
    "faults of streams": Difference(
        "h2",
        "Frames behind the end of a stream, and a stream's window that is overrun or widened beyond its bounds",
        {"h2": "end the stream", "ngh2": "end the connection"},
        "RFC 9113, section 5.4.1, lets an endpoint take a stream error for a connection error; libnghttp2 does.",
    ),
    "self-dependency": Difference(
        "h2",
        "PRIORITY that makes a stream depend on itself",
        {"h2": "ends the stream", "ngh2": "is ignored"},
        "RFC 9113 dropped these priorities, and libnghttp2 does with them what it says: nothing.",
    ),
    "closed streams": Difference(
        "h2",
        "Frames on a stream that is closed, or was passed over",
        {"h2": "end the connection", "ngh2": "are ignored, and counted as abuse when there are many"},
        "libnghttp2 keeps no record of closed streams.",
    ),
    "empty ends": Difference(
        "h2",
        "The end of an answer without more bytes, while a window is shut",
        {"h2": "sent at once", "ngh2": "sent when the window opens"},
        "libnghttp2 sends no DATA into a shut window, an empty one neither.",
    ),
    "streams behind GOAWAY": Difference(
        "h2",
        "Requests behind the last stream of our GOAWAY",
        {"h2": "refused one by one", "ngh2": "ignored"},
        "RFC 9113, section 6.8, lets the client know by GOAWAY alone.",
    ),
    "answers that are reset": Difference(
        "h2",
        "The head of an answer that is reset before it was sent",
        {"h2": "sent", "ngh2": "dropped"},
        "libnghttp2 frames heads when they are sent, so that a reset overtakes them.",
    ),
    "bombs": Difference(
        "h2",
        "A header section of many references to one long field",
        {"h2": "answered with 431 while the tables can be kept in step, then the connection ends", "ngh2": "ends the connection"},
        "ngh2 makes a copy of each field, so that the end has to come sooner.",
    ),
    "priorities": Difference(
        "h2",
        "The order in which the answers of a connection share it",
        {"h2": "in turns", "ngh2": "by RFC 9218, in turns where the client asks for nothing"},
        "The library has a scheduler for it, and SETTINGS says that it is used.",
    ),
    "platforms": Difference("quic", "Where it runs", {"aioquic": "everywhere", "native": "Linux"}, "It uses Linux's system calls."),
    "QUIC versions": Difference(
        "quic", "QUIC versions", {"aioquic": "1 and 2", "native": "1"}, "quiche has no other; a client with 2 is told, and takes 1."
    ),
    "congestion control": Difference(
        "quic",
        "Congestion control",
        {engine.name: ", ".join(engine.congestion_controls) for engine in ENGINES if engine.kind == "quic"},
        "What the libraries have.",
    ),
    "slow start": Difference(
        "quic",
        "The end of slow start before anything is lost (cubic and reno)",
        {"aioquic": "when round trips get longer", "native": "HyStart++ (RFC 9406)"},
        "What the libraries have; bbr has no such phase.",
    ),
    "connection IDs": Difference(
        "quic",
        "Connection IDs that a client has to choose from when it moves; it may ask for fewer",
        {"aioquic": "4", "native": "8"},
        "They are given anew as they are used up, and cost memory.",
    ),
    "rebindings": Difference(
        "quic",
        "Congestion window and round-trip time of a client whose port alone has changed (another address begins anew)",
        {"aioquic": "are kept", "native": "begin anew"},
        "RFC 9000, section 9.4, allows both; quiche keeps them by path.",
    ),
    "path MTU": Difference(
        "quic",
        "Path MTU discovery (RFC 8899)",
        {"aioquic": "no", "native": "yes; after two probe timeouts with nothing large acknowledged it begins anew"},
        "aioquic has none; 1,200 bytes pass everywhere. quiche looks for the size, native/src/black_hole.rs for paths that shrink.",
    ),
    "system calls": Difference(
        "quic",
        "System calls",
        {"aioquic": "one for each datagram in; GSO out", "native": "many datagrams for each: recvmmsg with GRO, sendmmsg with GSO"},
        "Python has no recvmmsg; the native engine uses the socket by itself.",
    ),
    "key exchange": Difference(
        "quic",
        "Key exchange",
        {"aioquic": "X25519, P-256, P-384, X448", "native": "X25519MLKEM768, X25519, P-256"},
        "What the TLS libraries have. A client that sent a share of none of them, but has one, is asked for it (HelloRetryRequest).",
    ),
    "certificate compression": Difference(
        "quic",
        "Certificates go compressed to clients that take it (RFC 8879)",
        {engine.name: " or ".join(engine.certificate_compressions) or "no" for engine in ENGINES if engine.kind == "quic"},
        "aioquic has none; a client then gets the certificate as it is.",
    ),
    "ciphers": Difference(
        "quic",
        "The cipher, of a client that has several",
        {
            "aioquic": "ChaCha20 where it is the client's first, else AES with 128 bits before 256",
            "native": "the client's order; ChaCha20 first where this processor has no AES instructions",
        },
        "Who has ChaCha20 first has no AES instructions. Otherwise all are fine: BoringSSL leaves it to the client.",
    ),
    "tickets": Difference(
        "quic",
        "Session tickets that are resumed",
        {"aioquic": "of aioquic, where the client shows one", "native": "of native, the first that the client shows"},
        "A ticket holds the TLS library's own state. Instances that share keys should have the same engine.",
    ),
    "alerts": Difference(
        "quic",
        "The alert for a client certificate of a stranger; for one that is not for clients",
        {"aioquic": "bad_certificate", "native": "unknown_ca; unsupported_certificate"},
        "RFC 8446, section 6.2, leaves the choice; BoringSSL says more.",
    ),
    "handshake bytes": Difference(
        "quic",
        "Handshake messages of a client, kept at most",
        {"aioquic": "16 KiB", "native": "64 KiB"},
        "Each library's own bound.",
    ),
    "fragments": Difference(
        "quic",
        "Pieces of a stream that come out of order",
        {
            "aioquic": "262 holes for a window of 256 KiB; more end the connection",
            "native": "as many as fit the windows, small ones by a budget",
        },
        "Each library keeps them in its own way; either takes a small multiple of the window at most.",
    ),
    "retired IDs": Difference(
        "quic",
        "Connection IDs that a client retires at once, and that are not yet told",
        {"aioquic": "32", "native": "15"},
        "Each library's own bound.",
    ),
    "key updates": Difference(
        "quic",
        "Fresh keys for what a connection sends",
        {
            "aioquic": "after 4,194,304 packets, and when the client asks",
            "native": "the same; who does not follow, or too many forged packets, end the connection (AEAD_LIMIT_REACHED)",
        },
        "RFC 9001, section 6.6, allows AES 8,388,608 packets with the same keys. aioquic does not count forged packets.",
    ),
    "close reasons": Difference(
        "quic",
        "Words and frame type in the CONNECTION_CLOSE of a transport error",
        {"aioquic": "yes", "native": "no"},
        "quiche sends the code alone, and the log has no more.",
    ),
    "qlog": Difference(
        "quic",
        "The draft that traces (`server.quic.qlog`) follow",
        {"aioquic": "version 0.3 (draft-ietf-quic-qlog-main-schema-02)", "native": "draft-ietf-quic-qlog-quic-events-12"},
        "What the libraries write.",
    ),
    "path figures": Difference(
        "quic",
        "Round-trip time, losses, congestion window and shrunk paths in the metrics",
        {"aioquic": "no", "native": "when a connection ends"},
        "aioquic keeps them to itself.",
    ),
}


def markdown() -> str:
    """The reference page."""
    parts = [HEAD]
    for kind in KINDS:
        engines = [engine for engine in ENGINES if engine.kind == kind]
        preferred = " or ".join(f"`{name}`" for name in (AUTO_H2 if kind == "h2" else AUTO_QUIC))
        parts.append(f"\n## {TITLES[kind]}\n\n`{AUTO}` takes {preferred}, the first that is installed.\n\n")
        parts.append("| engine | made of | where it is missing |\n|---|---|---|\n")
        parts += [f"| `{engine.name}` | {', '.join(engine.distributions)} | {engine.install} |\n" for engine in engines]
        names = [engine.name for engine in engines]
        parts.append(f"\n| | {' | '.join(f'`{name}`' for name in names)} | why |\n|---|{'---|' * len(names)}---|\n")
        for difference in DIFFERENCES.values():
            if difference.kind == kind:
                parts.append(f"| {difference.what} | {' | '.join(difference.does[name] for name in names)} | {difference.why} |\n")
    parts.append(NEITHER)
    return "".join(parts)


NEITHER = """
Neither engine has ECN (RFC 9000, section 13.4) or multipath (draft-ietf-quic-multipath), since neither library has: losses, and delay with
bbr, tell of congestion, and a connection uses one path at a time. A client that offers them goes on without. DATAGRAM frames (RFC 9221) and
extended CONNECT are not offered.
"""

HEAD = """# Engines

Made from the source by `qproxy schema --engines`: do not edit.

HTTP/2 and HTTP/3 have two engines each: a portable one in Python, and a fast one around a native library. `server.engines` in the
configuration names one (see `configuration.md`), `qproxy --version` tells which serve. All of them pass the same tests; below is all that
is different, and why.
"""

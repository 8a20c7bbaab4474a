"""The tables as a reference page: ``make conformance`` writes it."""

from collections.abc import Iterator

from harness.conformance import TABLES
from harness.conformance.case import Case, Code, Otherwise

ENGINES = ("aioquic", "native")

HEAD = """# Conformance

Made from the tests by `make conformance`: do not edit.

What a hostile client does over a real socket, and the exact code that it hears, on both QUIC engines. After each case another client, whose
connection was there before, is served on. `tests/e2e/harness/conformance/` has the cases, `tests/e2e/test_e2e_conformance.py` runs them.

A code ends the connection, unless the case is said to cost its stream: then the connection serves on. Where an engine decides otherwise,
the last column says which and why. Connections that end so are counted by `qproxy_connection_errors_total`, handshakes by
`qproxy_handshake_failures_total`, streams that cost a malformed request by `qproxy_rejected_total`.
"""

INTRODUCTIONS = {
    "Handshakes": "Transport parameters, TLS, and the packets that carry them.",
    "QUIC": "What breaks the rules of RFC 9000 and RFC 9001 on a connection that is established.",
    "HTTP/3": "What breaks the rules of RFC 9114. `test_e2e_malformed_h3.py` has many more malformed messages, and some with an answer.",
    "QPACK": "What breaks the rules of RFC 9204, where neither side has a dynamic table: nothing can wait for one, and nothing blows up.",
    "Floods": "What every client may do a little of. `floods.md` says what bounds each.",
}

ELSEWHERE = """
## Codes that are not here

| code | why |
|---|---|
| CONNECTION_REFUSED, INVALID_TOKEN | What the handshake's gate says: `test_e2e_retry.py`, `test_engine_quic_gate.py`. |
| AEAD_LIMIT_REACHED | It takes 2^36 forged packets with ChaCha20, 2^52 with AES (RFC 9001, section 6.6). Neither library counts them. |
| NO_VIABLE_PATH, INTERNAL_ERROR, H3_INTERNAL_ERROR | No byte of a client's brings them about. |
| VERSION_NEGOTIATION_ERROR | Compatible version negotiation (RFC 9368) is aioquic's alone. |
| H3_NO_ERROR, H3_REQUEST_REJECTED | What we say when we end: `test_e2e_life.py`, `test_e2e_malformed_h3.py`. |
| H3_REQUEST_CANCELLED, H3_CONNECT_ERROR, H3_VERSION_FALLBACK | A client's own words, or of features that are not there. |
| H3_GENERAL_PROTOCOL_ERROR | A specific code says more. |
"""


def markdown() -> str:
    """The page."""
    return HEAD + "".join(line for name, cases in TABLES.items() for line in _table(name, cases)) + ELSEWHERE


def _table(name: str, cases: tuple[Case, ...]) -> Iterator[str]:
    yield f"\n## {name}\n\n{INTRODUCTIONS[name]}\n\n| what the client does | by | code | otherwise |\n|---|---|---|---|\n"
    for case in cases:
        scope = ", on the stream" if case.stream else ""
        otherwise = " ".join(f"`{engine}`: {_words(case.except_for[engine])}" for engine in ENGINES if engine in case.except_for)
        yield f"| {case.name} | {case.source} | {_name(case.code)}{scope} | {otherwise} |\n"


def _words(otherwise: Otherwise) -> str:
    return f"{_name(otherwise.code) if otherwise.code is not None else 'nothing'}. {otherwise.why}"


def _name(code: Code) -> str:
    return code.spelled


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201  # it is a program

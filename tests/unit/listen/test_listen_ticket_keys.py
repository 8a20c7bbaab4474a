"""Ticket keys of OpenSSL's contexts: given past the ``ssl`` module, or not at all."""

import ctypes
import os
import ssl
import sys
import types

import pytest

from proxy.listen import ticket_keys as module
from proxy.listen import tls
from proxy.listen.ticket_keys import KEY_BYTES, Unreachable, reach, ticket_keys
from proxy.listen.tls import TlsContexts, TlsSession
from proxy.sni import ClientCertificateRule
from tests.unit.listen.test_listen_tls import BOTH, Client, profile, shake, site, trusting

__all__ = ["site"]

SECRET, OTHER = b"s" * 32, b"o" * 32


@pytest.fixture(autouse=True)
def anew():
    """What is found out is remembered for the life of the process."""
    yield
    reach.cache_clear()


def visit(authority, server, session=None):
    """One handshake: the session for the next one, and whether this one resumed."""
    context = session[0] if session else trusting(authority.pem)
    client = Client(context, session=session[1] if session else None)
    served = TlsSession(server)
    shake(client, served)
    assert served.resumed == client.tls.session_reused
    return (context, client.tls.session), served.resumed


def test_this_interpreter_s_contexts_can_be_given_keys():
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]
    give = reach()
    assert give is reach()
    for context in contexts:
        assert give(context, os.urandom(KEY_BYTES))
        assert give(context, os.urandom(KEY_BYTES)), "others"


def test_keys_follow_from_secret_and_content():
    keys = ticket_keys(SECRET, b"site")
    assert len(keys) == KEY_BYTES
    assert keys == ticket_keys(SECRET, b"site")
    assert len({keys, ticket_keys(OTHER, b"site"), ticket_keys(SECRET, b"other site")}) == 3


def test_a_ticket_of_one_process_resumes_at_another_with_the_same_secret(authority, site):
    here, there, stranger = TlsContexts(SECRET), TlsContexts(SECRET), TlsContexts(OTHER)
    session, resumed = visit(authority, here.get(profile(site), BOTH))
    assert not resumed
    for contexts, expected in ((here, True), (there, True), (stranger, False)):
        assert visit(authority, contexts.get(profile(site), BOTH), session)[1] is expected
    assert (here.unshared, there.unshared) == ("", "")


def test_no_ticket_passes_to_another_certificate_domain_or_protocols(authority, site):
    here, there = TlsContexts(SECRET), TlsContexts(SECRET)
    session, _ = visit(authority, here.get(profile(site), BOTH))
    renewed = authority.sign("a.example.com", "*.a.example.com")
    for other, protocols in ((profile(renewed), BOTH), (profile(site, domain="b.example.com"), BOTH), (profile(site), frozenset({"h2"}))):
        assert visit(authority, there.get(other, protocols), session)[1] is False


def test_another_secret_is_for_contexts_that_are_there_too(authority, site):
    contexts, others = TlsContexts(SECRET), TlsContexts(OTHER)
    served = contexts.get(profile(site), BOTH)
    old, _ = visit(authority, served)
    contexts.use(OTHER)
    new, resumed = visit(authority, served, old)
    assert not resumed
    assert visit(authority, others.get(profile(site), BOTH), new)[1]
    assert visit(authority, served, old)[1] is False


def test_who_asks_for_certificates_still_gives_no_tickets(authority, site):
    context = TlsContexts(SECRET).get(profile(site, ClientCertificateRule(authority.pem, required=False)), BOTH)
    client = Client(trusting(authority.pem))
    shake(client, TlsSession(context))
    assert client.tls.session is None or not client.tls.session.has_ticket


# Where it can't be done


def hidden(**_):
    msg = "no"
    raise OSError(msg)


WRONG = {
    "another interpreter": lambda patch: patch.setattr(sys, "implementation", types.SimpleNamespace(name="pypy")),
    "another library": lambda patch: patch.setattr(ssl, "OPENSSL_VERSION", "LibreSSL 3.8.2"),
    "an old library": lambda patch: patch.setattr(ssl, "OPENSSL_VERSION_INFO", (1, 0, 2, 0, 0)),
    "functions that are not shown": lambda patch: patch.setattr(module.ctypes, "CDLL", lambda *_: types.SimpleNamespace()),
    "a library that is not found": lambda patch: patch.setattr(module.ctypes, "CDLL", lambda *_: hidden()),
    "no pointer": lambda patch: patch.setattr(module, "_pointer", lambda _: 0),
    "a pointer to nowhere": lambda patch: patch.setattr(module, "_pointer", lambda _: 0x10),
    "a pointer to something else": lambda patch: patch.setattr(module, "_pointer", lambda _: ctypes.addressof(ZEROS)),
}
ZEROS = ctypes.create_string_buffer(4096)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_where_anything_is_not_as_known_nothing_is_touched(monkeypatch, authority, site, wrong):
    reach.cache_clear()
    with monkeypatch.context() as patch:
        wrong(patch)
        with pytest.raises(Unreachable) as unreachable:
            reach()
        contexts = TlsContexts(SECRET)
    assert ZEROS.raw == bytes(4096)
    assert contexts.unshared == str(unreachable.value)
    contexts.use(OTHER)
    served = contexts.get(profile(site), BOTH)
    session, _ = visit(authority, served)
    assert visit(authority, served, session)[1], "OpenSSL has keys of its own"
    assert visit(authority, TlsContexts(OTHER).get(profile(site), BOTH), session)[1] is False


def test_a_library_that_takes_no_keys(monkeypatch):
    reach.cache_clear()
    monkeypatch.setattr(module, "SET_KEYS", 4711)
    with pytest.raises(Unreachable, match="takes no ticket keys"):
        reach()


def test_contexts_without_a_secret_ask_nobody(monkeypatch, authority, site):
    monkeypatch.setattr(tls, "reach", lambda: pytest.fail("asked"))
    contexts = TlsContexts()
    session, _ = visit(authority, contexts.get(profile(site), BOTH))
    assert visit(authority, contexts.get(profile(site), BOTH), session)[1]

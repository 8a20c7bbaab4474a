"""To which instance an L4 tier would pass a new connection on, and why: the decisions of ``proxy/l4`` retold for people."""

from collections.abc import Iterator

from balancer.affinity import address_key
from proxy.control.explain import NOWHERE, TRANSPORTS, Line, Places, Question, candidates, is_address
from proxy.message import host_of
from proxy.snapshot import L4Listener, Snapshot


def tier_listener(snapshot: Snapshot, question: Question) -> L4Listener | None:
    """The tier's listener that takes the question's connection; None where one that terminates does, or none.

    The one with the port; else the first one, where no listener that terminates speaks the protocol.
    """
    speaking = [listener for listener in snapshot.l4 if (listener.udp if question.protocol == "h3" else listener.tcp)]
    for listener in speaking:
        if listener.address[1] == question.port:
            return listener
    terminated = any(question.protocol in listener.protocols for listener in snapshot.listeners)
    return None if terminated or not speaking else speaking[0]


def explain_tier(listener: L4Listener, question: Question, secret: bytes, now: float, places: Places = NOWHERE) -> Iterator[Line]:
    """The steps for a new connection; what becomes of the request is for the instance to say.

    *secret* keys the hashes, as in the tier. *places* tells where DNS has instances that are named by host.
    """
    meant = "" if listener.address[1] == question.port else f" (the first one: none of the tier has port {question.port})"
    yield Line("listener", f"{listener.name} of the L4 tier, over {TRANSPORTS[question.protocol]}{meant}")
    instances = listener.instances
    if question.protocol == "h3":
        yield Line("connection", "a new one: one whose connection ID names an instance that lives goes there")
    elif not question.plain:
        name = host_of(question.authority.encode()).decode()
        sni = None if is_address(name) else name
        instances = listener.select(sni)
        own = "no instances of its own" if instances is listener.instances else "instances of its own"
        yield Line("name", f"SNI {sni or '(none)'}: {own}")
    pool = instances.pool
    if question.protocol == "h3" and listener.initial_key == "dcid":
        yield Line("key", "the connection ID that the client makes up: another one each time, so any instance that is up")
        for number, backend in enumerate(pool.balancer.backends):
            yield Line("" if number else "instances", f"{backend.identity} ({backend.state})")
        return
    key = address_key(secret, question.client)
    yield Line("key", f"client_address {question.client}: {key.hex()}")
    steps = pool.balancer.explain(key, now)
    yield from candidates(pool, steps, places)
    yield Line("answer", "the instance's" if any(step.chosen for step in steps) else "none: no instance takes what is new")

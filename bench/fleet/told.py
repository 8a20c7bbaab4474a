"""What became of a fleet's connections, and how evenly policies deal, as Markdown. Pure."""

from collections.abc import Sequence

from bench.fleet.deal import Moved, Spread
from bench.fleet.plan import Plan
from bench.fleet.run import Outcome

METHOD = """\
{connections:,} QUIC connections to {instances} instances in {duration:.0f} s of virtual time: they live {lifetime:.0f} s on average and
send every {gap:.0f} s. Of the clients, {movers:.0%} change their address every {stay:.0f} s or so. Every {churn:.0f} s an instance leaves,
by turns drained (gone {drain:.0f} s later) or dead at once, and another joins. At {rotation:.0f} s instances begin to give connection IDs
under the next key; at {loss:.0f} s the balancer is restarted and has lost what it knew of flows. *Kept* is the share of connections of
which every datagram came to the instance that the connection began with, of those whose instance lived. *Spread* is the new connections
of the fullest instance over the mean. Datagrams are real ones as far as a balancer may read them, and every balancer sees the same. What
routes is the code that serves. Instances that forward are modelled: that forwarding works is shown by tests with real ones."""

DEAL = """\
Requests that arrive at random, of random length, ten in flight for each of 100 backends with weights 1 and 2; the fullest backend over
the mean, each by its weight. A consistent hash deals keys, here one for each request; round robin deals turns."""

MOVED = """\
Keys that have another backend after a change of a pool of 100, of 100,000; *least* is what has to move for the shares to be right."""


def markdown(plan: Plan, outcomes: Sequence[Outcome], spreads: Sequence[Spread], moves: Sequence[Moved]) -> str:
    """The whole report."""
    lines = ["# A fleet in virtual time", "", METHOD.format_map({name: getattr(plan, name) for name in plan.__slots__}), ""]
    lines += ["| balancer | kept | broken | forwarded datagrams | spread |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.name} | {kept(one)} | {one.broken:,} of {one.began - one.ended_with_instance:,} | {one.forwarded:,} of {one.datagrams:,} "
        f"| {one.spread:.2f} |"
        for one in outcomes
    ]
    lines += ["", *(f"- *{one.name}*: {one.spoken_of}." for one in outcomes), ""]
    lines += ["![Connections that were broken](fleet.svg)", "", "## How evenly policies deal", "", DEAL, ""]
    lines += ["| policy | requests, fullest over mean | in flight, fullest over mean |", "|---|---|---|"]
    lines += [f"| {one.policy} | {one.by_count:.2f} | {one.in_flight:.2f} |" for one in spreads]
    lines += ["", "## Keys that move", "", MOVED, "", "| change | ring | least | modulo |", "|---|---|---|---|"]
    lines += [f"| {one.change} | {one.ring:.2%} | {one.least:.2%} | {one.modulo:.1%} |" for one in moves]
    return "\n".join(lines) + "\n"


def kept(outcome: Outcome) -> str:
    """The share of connections that stayed: rounded, but never up to all of them."""
    return "100 %" if not outcome.broken else f"{min(outcome.kept, 0.9999):.2%}"

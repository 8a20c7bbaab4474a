"""A fleet in virtual time: which balancer keeps connections at their instance, and how evenly policies deal.

``python -m bench.fleet --help``. No socket and no clock: the code that routes is the tier's own, the datagrams are real, and time is a
number.
"""

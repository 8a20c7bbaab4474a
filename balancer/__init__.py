"""Which backend gets a request: pure, and without a word of HTTP.

``pool`` is the front, and all that the proxy uses besides ``affinity``. Under it, from choice to state:

- ``policies`` order the backends of a ``tier`` (primaries or backups); ``ring`` is the consistent hash under one of them, ``prng`` the
  dice of two others.
- ``health`` turns outcomes into the states of a ``backend``; ``budget`` bounds retries.
- ``affinity`` makes keys of connections and addresses.

Time is an argument (seconds, monotonic), secrets and seeds are given: the same calls give the same choices.
"""

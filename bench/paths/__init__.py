"""How congestion control does on paths that are not loopback: ``make bench`` has some of them, ``make bench-full`` all.

``plan.py`` says which paths, ``relay.py`` is one, ``measure.py`` sends downloads over it; ``told.py`` makes tables,
``drawn.py`` pictures.
"""

"""What qproxy can do beside its peers, and where the time goes: ``make bench``, ``make bench-full``, ``make profile``.

``run.py`` begins a comparison, ``plan.py`` says what is measured, ``session.py`` measures it. ``servers/`` starts what is compared,
``load/`` asks it, ``floor/`` is each engine with bytes in, one backend, bytes out. ``figures.py``, ``bars.py``, ``report.py`` and
``plots.py`` make tables and pictures of the runs: no socket, no clock. ``micro/`` holds measurements of parts, each run by itself.
"""

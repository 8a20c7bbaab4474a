"""The floors: what an engine can do under bare Python plumbing. Bytes in, one backend, bytes out, and no policy at all.

What the product adds to its floor is what routing, policies, retries, limits, deadlines, metrics and logs cost. Each is one program:
``python -m bench.floor VERSION --engine ENGINE --port PORT --backend PORT --certificate FILE``.
"""

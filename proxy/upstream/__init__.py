"""Sockets out: connections to backends, kept alive and reused.

``pool.py`` keeps the idle connections of each endpoint, ``connect.py`` opens new ones, ``h1.py`` speaks HTTP/1.1 on one.
"""

"""Protocol engines: bytes and the time in, events and bytes out. No sockets, no clock, no asyncio.

``seam.py`` is what a listener needs of an engine, ``events.py`` the one vocabulary of all versions. Nothing above this package imports
an engine's library (h2, aioquic).
"""

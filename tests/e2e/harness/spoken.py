"""Which versions of HTTP the clients of the running test spoke: each client of the harness notes it, the fixtures look at it."""

NOTED: set[str] = set()


def note(version: str) -> None:
    """A client is about to speak *version*, or to try."""
    NOTED.add(version)

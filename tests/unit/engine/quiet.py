"""What an engine's ``quiet`` promises, checked wherever a test has an engine in its hands."""

from proxy.engine.seam import Connection


def keeps_quiet(engine: Connection) -> bool:
    """Whether the engine says that it is quiet; where it does, every question for which ``quiet`` stands must agree."""
    if not engine.quiet:
        return False
    assert (engine.wants_input, engine.finished, engine.head_in_progress) == (True, False, False)
    assert (engine.take_output(1 << 30), engine.take_events()) == (b"", [])
    assert engine.quiet
    return True

"""Any text is keys or an error; of any keys of a file one seals, and instances that have not all the file yet open what is sealed."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from proxy.keys import Key, KeyFileError, Keyring, KeySet, parse

BEGIN = 1_800_000_000
words = st.sampled_from(
    ["ring", "0", "7", "300", "#", "2027-01-15T08:00:00Z", "now", base64.b64encode(b"k" * 32).decode(), "A=="]
) | st.text(max_size=12)
texts = st.lists(st.lists(words, max_size=4).map(" ".join), max_size=6).map("\n".join)


@given(texts | st.text())
def test_any_text_gives_keys_or_an_error(text: str) -> None:
    problems: tuple[str, ...] = ()
    keys = None
    try:
        keys = parse(text, "f")
    except KeyFileError as error:
        problems = error.problems
    assert (keys is None) == bool(problems)
    assert all(problem.startswith("f:") for problem in problems)
    assert keys is None or 1 <= len(keys.keys) <= 4


rotations = st.lists(st.integers(1, 10_000), min_size=1, max_size=3, unique=True)


@given(first=st.integers(0, 255), waits=rotations, loads=st.lists(st.floats(0, 1), min_size=2, max_size=2), at=st.floats(-10, 40_000))
def test_files_that_are_brought_before_the_begin_open_what_any_instance_seals(
    first: int, waits: list[int], loads: list[float], at: float
) -> None:
    """Each key is loaded by each instance at some time between the begins of the one before and its own."""
    begins = [BEGIN]
    for wait in waits:
        begins.append(begins[-1] + wait)
    keys = [Key((first + n) % 256, begin, bytes([n + 1]) * 32) for n, begin in enumerate(begins)]
    now = BEGIN + at

    def instance(share: float) -> Keyring:
        loaded = [key for before, key in zip([BEGIN - 10**6, *begins], keys, strict=False) if before + share * (key.begin - before) <= now]
        return Keyring(KeySet(tuple(loaded or keys[:1]), b"r" * 32), b"own")

    one, other = (instance(share) for share in loads)
    assert other.opens(one.sealing(now))
    assert one.sealing(now) == other.sealing(now)

"""Hostile text made fit for people's terminals and for log files: nothing in it can move a cursor or begin a line.

Knows text only.
"""

_MARK = "..."


def printable(text: str | bytes, limit: int) -> str:
    r"""*text* without anything that can't be printed, of at most *limit* characters before escaping; what was cut ends with ``...``.

    Control and formatting characters (escapes, line ends, changes of writing direction) become ``\n``, ``\x1b``, ``\u202e``, and bytes
    beyond ASCII likewise. A backslash stays as it is.
    """
    mark = ""
    if len(text) > limit:
        text = text[:limit]
        mark = _MARK
    if isinstance(text, bytes):
        text = text.decode("ascii", "backslashreplace")
    if not text.isprintable():
        text = "".join([char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text])
    return text + mark if mark else text


def block(text: str, limit: int) -> str:
    """The same for text of several lines (a traceback): each is indented, so that none looks like an entry."""
    return "\n".join(["  " + printable(line.replace("\t", "    "), limit) for line in text[:limit].splitlines()])

"""Taking a prefix off a path, or putting another in its place, on the way to the backend.

Knows paths only. What the route matched in its canonical form is taken off as it was sent; the rest stays byte for byte.
"""

from dataclasses import dataclass, field

from proxy.policy.path import canonical, prefix_length


@dataclass(frozen=True, slots=True)
class PathRewrite:
    """Replace *prefix* by *replacement* (empty: strip it). A path that does not begin with the prefix stays as it is.

    Segments never grow together: ``/api/`` replaced by ``/v1`` makes ``/v1/users`` of ``/api/users``, and so does ``/api`` by ``/v1/``.
    """

    prefix: bytes
    replacement: bytes
    _canonical: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_canonical", canonical(self.prefix))

    def apply(self, path: bytes) -> bytes:
        """The path for the backend, query kept. Begins with exactly one slash where it changed anything.

        Two slashes at the front would read as an authority to a backend that resolves them (RFC 3986, section 4.2).
        """
        bare, mark, query = path.partition(b"?")
        taken = prefix_length(bare, self._canonical)
        if taken is None:
            return path
        rest = bare[taken:]
        if self._canonical.endswith(b"/"):
            rest = b"/" + rest
        front = self.replacement.rstrip(b"/") if rest else self.replacement
        return b"/" + (front + rest).lstrip(b"/") + mark + query

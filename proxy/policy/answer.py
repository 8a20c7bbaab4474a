"""Answers that the proxy gives by itself, as the configuration states them.

Knows templates and fields; how an answer is sent is the exchange's affair.
"""

from dataclasses import dataclass

from proxy.message import Header
from proxy.policy.template import Template, Variables


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the client elsewhere: 301, 302, 303, 307 or 308 with a Location."""

    status: int
    location: Template

    def target(self, variables: Variables) -> bytes:
        """The Location. A path that opens it can't turn into a host: ``//evil.example`` is sent as ``/evil.example``.

        Browsers read two slashes, or a slash and a backslash, as the start of an authority (RFC 3986, section 4.2; WHATWG URL).
        """
        location = self.location.render(variables)
        if self.location.begins_with("path") and location[:1] == b"/":
            return b"/" + location.lstrip(b"/\\")
        return location


@dataclass(frozen=True, slots=True)
class Respond:
    """A fixed answer. *headers* holds no content-length: the engine adds it."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

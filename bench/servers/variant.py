"""What may differ between two starts of one server."""

from dataclasses import dataclass

HOST = "a.example.com"


@dataclass(frozen=True)
class Variant:
    """How a server is to be configured."""

    access_log: bool = False
    """A line for each request, to a file."""
    uploads: bool = False
    """Behind it is what takes uploads in place of what serves files."""
    workers: int = 1
    """Of qproxy. With one, everything is in one process."""
    sites: int = 1
    """Virtual hosts, each with a route of its own. The first is a.example.com, the others h1.example.com and so on."""

    def __str__(self) -> str:
        """For a reader who knows the plain one."""
        parts = [", with an access log"] if self.access_log else []
        parts += [", with uploads"] if self.uploads else []
        parts += [f", with {self.workers} workers"] if self.workers > 1 else []
        parts += [f", with {self.sites:,} sites"] if self.sites > 1 else []
        return "".join(parts)

    def hosts(self) -> list[str]:
        """The names of all sites."""
        return [HOST, *(f"h{number}.example.com" for number in range(1, self.sites))]

    @property
    def asked(self) -> str:
        """The host that the load asks for: the last, so that a server that goes through its sites in order meets it late."""
        return self.hosts()[-1]


PLAIN = Variant()
"""One site, files behind it, no access log."""

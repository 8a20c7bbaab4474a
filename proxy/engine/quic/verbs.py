"""What is done with requests and connections, by (connection, stream): the seam's verbs, passed on to the HTTP/3 of that connection.

Knows no datagrams and no connection but by its handle.
"""

from abc import ABC, abstractmethod

from proxy.engine.h3 import H3Connection
from proxy.engine.seam import Handle
from proxy.errors import Reset
from proxy.message import Headers


class Verbs(ABC):
    """The part of ``seam.Endpoint`` that speaks to one connection. One that is gone takes everything silently."""

    @abstractmethod
    def _http(self, handle: Handle) -> H3Connection | None:
        """The HTTP/3 of a connection that is about to have something to send; None where it is gone."""

    def respond(self, connection: Handle, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """See ``engine/seam.py``, as for all of these."""
        if http := self._http(connection):
            http.respond(stream, status, headers, body)

    def send_head(self, connection: Handle, stream: int, status: int, headers: Headers, end: bool) -> None:
        """A final response head."""
        if http := self._http(connection):
            http.send_head(stream, status, headers, end)

    def send_data(self, connection: Handle, stream: int, data: bytes, end: bool) -> int:
        """Queue body bytes; returns what is queued for the stream."""
        http = self._http(connection)
        return http.send_data(stream, data, end) if http else 0

    def send_trailers(self, connection: Handle, stream: int, headers: Headers) -> None:
        """End the body with trailers."""
        if http := self._http(connection):
            http.send_trailers(stream, headers)

    def inform(self, connection: Handle, stream: int, status: int, headers: Headers) -> None:
        """A 1xx response."""
        if http := self._http(connection):
            http.inform(stream, status, headers)

    def consumed(self, connection: Handle, stream: int, credit: int) -> None:
        """The other side took *credit* bytes of the request body."""
        if http := self._http(connection):
            http.consumed(stream, credit)

    def reset(self, connection: Handle, stream: int, reason: Reset) -> None:
        """Cut one stream."""
        if http := self._http(connection):
            http.reset(stream, reason)

    def goaway(self, connection: Handle) -> None:
        """In two calls: the second accepts no new requests on the connection, which closes when the present ones are done."""
        if http := self._http(connection):
            http.goaway()

    def close(self, connection: Handle, reason: Reset) -> None:
        """Close the connection at once. ConnectionClosed follows, from ``take_events``."""
        if http := self._http(connection):
            http.close(reason)

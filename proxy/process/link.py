"""A channel on the event loop: what comes is handed on, what waits is sent as the other side takes it."""

import asyncio
import json
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

from proxy.process.channel import Channel, ChannelClosed

OnMessage = Callable[[Any, list[int]], None]
"""Takes a message and its descriptors, which are its to close."""


class Link:
    """One end of a channel between processes that trust each other (pickles), or with the supervisor (JSON, *plain*)."""

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_closed: Callable[[], None], *, plain: bool = False) -> None:
        self._channel = Channel(sock)
        self._on_message = on_message
        self._on_closed = on_closed
        self._loads: Callable[[bytes], Any] = json.loads if plain else pickle.loads
        self._dumps: Callable[[Any], bytes] = _json if plain else pickle.dumps
        self._loop = asyncio.get_running_loop()
        self._writing = self._closed = False
        self._loop.add_reader(self._channel.fileno(), self._readable)

    @property
    def pending(self) -> int:
        """Bytes that the other side has not taken."""
        return self._channel.pending

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send *message*. One that is closed takes nothing."""
        if self._closed:
            return
        self._channel.send(self._dumps(message), descriptors)
        self._watch()

    def close(self) -> None:
        """No more of it; ``on_closed`` is not called."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._channel.fileno())
        if self._writing:
            self._loop.remove_writer(self._channel.fileno())
        self._channel.close()

    def _readable(self) -> None:
        try:
            messages = self._channel.receive()
        except ChannelClosed:
            self.close()
            self._on_closed()
            return
        for message, descriptors in messages:
            self._on_message(self._loads(message), descriptors)

    def _writable(self) -> None:
        self._channel.flush()
        self._watch()

    def _watch(self) -> None:
        waits = self._channel.pending > 0
        if waits != self._writing:
            self._writing = waits
            if waits:
                self._loop.add_writer(self._channel.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._channel.fileno())


def _json(message: object) -> bytes:
    return json.dumps(message).encode()

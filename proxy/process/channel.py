"""Messages and descriptors between two processes of the proxy, over a socket pair. Standard library only, and no event loop.

Each message is bytes behind its length; descriptors go with the message that they belong to (SCM_RIGHTS).
"""

import array
import base64
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

MAX_MESSAGE = 1 << 30
"""Bytes of one message: a configuration of a hundred thousand sites has fewer."""

MAX_DESCRIPTORS = 250
"""Of one message; Linux takes 253."""

_HEAD = struct.Struct("=IB")
_READ = 256 * 1024
_ROOM = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)


class ChannelClosed(Exception):  # noqa: N818  # an end, and no error
    """The other side is gone."""


class Channel:
    """One end. Never blocks: what the other side does not take yet waits here (``pending``) for ``flush``."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._out: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._in = bytearray()
        self._descriptors: deque[int] = deque()
        self.pending = 0
        """Bytes that wait to be sent."""

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    # Over an upgrade: the process goes on with other code, which has to find messages that came by half, or were sent by half

    def descriptors(self) -> Iterator[int]:
        """All that the code after an upgrade needs."""
        yield self.fileno()
        yield from self._descriptors
        for _, descriptors in self._out:
            yield from descriptors

    def known(self) -> dict[str, Any]:
        """What that code needs to know."""
        return {
            "socket": self.fileno(),
            "in": _text(self._in),
            "descriptors": list(self._descriptors),
            "out": [[_text(data), list(descriptors)] for data, descriptors in self._out],
        }

    @classmethod
    def taken_over(cls, known: dict[str, Any]) -> "Channel":
        """What ``known`` told before the upgrade."""
        channel = cls(socket.socket(fileno=known["socket"]))
        channel._in += base64.b64decode(known["in"])
        channel._descriptors.extend(known["descriptors"])
        channel._out.extend((memoryview(base64.b64decode(data)), tuple(descriptors)) for data, descriptors in known["out"])
        channel.pending = sum(len(data) for data, _ in channel._out)
        for descriptor in channel.descriptors():
            os.set_inheritable(descriptor, False)
        return channel

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send, or keep for later. *descriptors* stay the caller's: copies of them are sent. A side that is gone takes nothing."""
        if len(message) > MAX_MESSAGE or len(descriptors) > MAX_DESCRIPTORS:
            msg = f"a message of {len(message)} bytes and {len(descriptors)} descriptors is too large"
            raise ValueError(msg)
        copies = tuple(os.dup(descriptor) for descriptor in descriptors)
        self._out.append((memoryview(_HEAD.pack(len(message), len(descriptors)) + message), copies))
        self.pending += _HEAD.size + len(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other side takes it."""
        while self._out:
            data, descriptors = self._out[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._drop()  # reading will tell that it is gone
                return
            self.pending -= sent
            _close(descriptors)
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], ())

    def receive(self) -> list[tuple[bytes, list[int]]]:
        """The messages that have come whole. Raises ChannelClosed at the end, when none is left."""
        ended = False
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_READ, _ROOM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data, ancillary = b"", []
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(content[: len(content) - len(content) % found.itemsize])
                    self._descriptors.extend(found)
            if not data:
                ended = True
                break
            self._in += data
            if len(data) < _READ:
                break
        messages = self._whole()
        if ended and not messages:
            raise ChannelClosed
        return messages

    def _whole(self) -> list[tuple[bytes, list[int]]]:
        messages, at = [], 0
        while len(self._in) - at >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._in, at)
            end = at + _HEAD.size + length
            if len(self._in) < end or len(self._descriptors) < count:
                break
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            messages.append((bytes(memoryview(self._in)[at + _HEAD.size : end]), descriptors))
            at = end
        if at:
            del self._in[:at]
        return messages

    def close(self) -> None:
        """Let go of it, and of descriptors that nobody took."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._drop()
        self._socket.close()

    def _drop(self) -> None:
        for _, descriptors in self._out:
            _close(descriptors)
        self._out.clear()
        self.pending = 0


def _text(data: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(data).decode()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

"""UDP sockets of one SO_REUSEPORT group, as the supervisor binds them."""

import contextlib
import socket


def bind_group(host: str, count: int) -> list[socket.socket]:
    """In order, on one free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            sock.bind((host, sockets[0].getsockname()[1] if sockets else 0))
            sockets.append(sock)
        stack.pop_all()
    return sockets

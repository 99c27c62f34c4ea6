"""JSON lines over a socket: how controller and ranks talk. Plain data only, so that no message can run code.

Owns framing and addresses; knows no message's meaning.

    link = connect("unix:/tmp/x/control")
    link.send({"event": "hello", "rank": 0})
    for message in link.receive(): ...
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

Message = dict[str, Any]

CHUNK = 1 << 16


class Link:
    """One end of a connection. Sending is safe from several threads; receiving belongs to one."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises OSError when the other end is gone."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            self.socket.sendall(line)

    def receive(self) -> list[Message] | None:
        """Waits for data; the whole messages among it, or None once the other end is gone."""
        try:
            data = self.socket.recv(CHUNK)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def held(self) -> int:
        """Bytes of a line that is not whole yet."""
        return len(self._rest)

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def close(self) -> None:
        """Ends the connection; the other end reads its end of file."""
        self.socket.close()


def connect(address: str) -> Link:
    """`unix:<path>` or `tcp:<host>:<port>`. Raises OSError."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(sock)

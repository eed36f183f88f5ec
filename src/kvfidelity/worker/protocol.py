"""Messages between client and worker: one JSON object per line, both ways."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

Message = dict[str, Any]


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def send(connection: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: the other end is gone, or does not read.
    """
    connection.sendall(json.dumps(message).encode() + b"\n")


def messages(connection: socket.socket) -> Iterator[Message]:
    """Messages until the other end closes or dies; an incomplete last line is dropped.

    Raises:
        ValueError: a line is not a JSON object.
        TimeoutError: nothing was received within the connection's time-out.
    """
    with connection.makefile("rb") as stream:
        while line := _line(stream):
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError(f"not a JSON object: {message!r}")
            yield message


def peer(connection: socket.socket) -> Peer:
    """The process at the other end of a Unix socket (Linux: SO_PEERCRED)."""
    layout = struct.Struct("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    return Peer(*layout.unpack(found))


def _line(stream: Any) -> bytes:
    try:
        line: bytes = stream.readline()
    except ConnectionError:
        return b""
    return line if line.endswith(b"\n") else b""
